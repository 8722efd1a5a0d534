import pytest

from jaxpretrain.config.renames import RENAMES, Rename, chosen, moved, renamed, upgraded

TABLE = (
    Rename("data.order", "data.order", chosen("order", {"olmo": "olmo_order"})),
    Rename("data.order_chunk", "data.order.chunk", moved("order", "chunk")),
    Rename("data.sources.*.dtype", "data.sources.*.raw.dtype", moved("raw", "dtype")),
    Rename("train.loss_chunk", "nothing; the chunk is chosen for you"),
)


def test_a_value_moves_into_the_group_that_its_word_has_become():
    old = {"data": {"order": "olmo", "order_chunk": 2, "seq_len": 8}}
    new = {"data": {"order": {"class": "olmo_order", "chunk": 2}, "seq_len": 8}}
    assert upgraded(old, TABLE) == new
    assert old == {"data": {"order": "olmo", "order_chunk": 2, "seq_len": 8}}


def test_a_config_of_today_stays_as_it_is():
    new = {"data": {"order": {"class": "olmo_order", "chunk": 2}, "stages": [{"at": 0}]}}
    assert upgraded(new, TABLE) == new


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
        ("data.sources.web.dtype", "data.sources.*.raw.dtype"),
        ("train.loss_chunk", "nothing; the chunk is chosen for you"),
        ("data.seq_len", None),
        ("data", None),
    ],
)
def test_an_old_path_says_what_is_written_now(path: str, now: str | None):
    assert renamed(path, TABLE) == now


def test_no_field_is_renamed_twice():
    assert len({row.old for row in RENAMES}) == len(RENAMES)
