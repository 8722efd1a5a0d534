import pytest

from jaxpretrain.config.renames import RENAMES, Rename, chosen, grouped, moved, renamed, upgraded

TABLE = (
    Rename("data.order", "data.order", chosen("order", {"olmo": "olmo_order"})),
    Rename("data.order_chunk", "data.order.chunk", moved("order", "chunk")),
    Rename("data.sources.*.dtype", "data.sources.*.raw.dtype", moved("raw", "dtype")),
    Rename("train.loss_chunk", "nothing; the chunk is chosen for you"),
    Rename("model.norm", "model.norm", chosen("norm", {"rms": "rms_norm", "old": "layer_norm"})),
    Rename("model.rounding", "model.norm.rounding", moved("norm", "rounding", of=("rms_norm",))),
)


def test_a_value_moves_into_the_group_that_its_word_has_become():
    old = {"data": {"order": "olmo", "order_chunk": 2, "seq_len": 8}}
    new = {"data": {"order": {"class": "olmo_order", "chunk": 2}, "seq_len": 8}}
    assert upgraded(old, TABLE) == new
    assert old == {"data": {"order": "olmo", "order_chunk": 2, "seq_len": 8}}


def test_a_config_of_today_stays_as_it_is():
    new = {"data": {"order": {"class": "olmo_order", "chunk": 2}, "stages": [{"at": 0}]}}
    assert upgraded(new, TABLE) == new


def test_a_value_moves_only_into_a_choice_that_has_its_field():
    def norm(word: str) -> dict[str, str]:
        return upgraded({"model": {"norm": word, "rounding": "first"}}, TABLE)["model"]["norm"]

    assert norm("rms") == {"class": "rms_norm", "rounding": "first"}
    assert norm("old") == {"class": "layer_norm"}


def test_a_star_stands_for_every_key():
    old = {"data": {"sources": {"a": {"dtype": "uint16", "raw": {}}, "b": {"raw": None}}}}
    new = {"data": {"sources": {"a": {"raw": {"dtype": "uint16"}}, "b": {"raw": None}}}}
    assert upgraded(old, TABLE) == new
    listed = {"data": {"sources": [{"dtype": "uint16", "raw": {}}]}}
    assert upgraded(listed, TABLE) == {"data": {"sources": [{"raw": {"dtype": "uint16"}}]}}


def test_a_field_that_is_gone_is_dropped():
    assert upgraded({"train": {"loss_chunk": 512}}, TABLE) == {"train": {}}


@pytest.mark.parametrize(
    ("path", "now"),
    [
        ("data.order_chunk", "data.order.chunk"),
        ("data.sources.web.dtype", "data.sources.web.raw.dtype"),
        ("train.loss_chunk", "nothing; the chunk is chosen for you"),
        ("data.order.chnk", None),  # the path is as before, only its values are others
        ("data.seq_len", None),
        ("data", None),
        ("model.norm", None),
        ("model.norm.epsilom", None),
    ],
)
def test_an_old_path_says_what_is_written_now(path: str, now: str | None):
    assert renamed(path, TABLE) == now


def test_each_star_of_the_advice_is_the_key_of_the_user():
    now = "data.sources.web.raw.dtype, after data.sources.web.raw=raw_tokens"
    assert renamed("data.sources.web.dtype") == now


def test_a_default_makes_no_group_and_moves_nowhere():
    table = (
        Rename("raw_dtype", "raw.dtype", grouped("raw", "raw_tokens", "dtype", "uint16")),
        Rename("trust", "raw.trust", grouped("raw", "raw_tokens", "trust", default=False)),
        Rename("chunk", "order.chunk", moved("order", "chunk", default=1)),
    )
    order = {"class": "olmo_order"}
    old = {"raw_dtype": "uint16", "trust": False, "chunk": 1, "order": order}
    assert upgraded(old, table) == {"raw": None, "order": order}
    made = upgraded({"raw_dtype": "uint16", "trust": True, "chunk": 2, "order": order}, table)
    assert made == {
        "raw": {"class": "raw_tokens", "trust": True},
        "order": {**order, "chunk": 2},
    }


def test_no_field_is_renamed_twice():
    assert len({row.old for row in RENAMES}) == len(RENAMES)


def test_a_group_that_was_the_only_one_names_its_class():
    assert upgraded({"mesh": {"fsdp": 2}}) == {"mesh": {"class": "mesh", "fsdp": 2}}
    for value in ({"class": "mesh", "fsdp": 2}, "auto"):
        assert upgraded({"mesh": value}) == {"mesh": value}
