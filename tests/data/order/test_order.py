import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides, validate
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict
from jaxpretrain.data.order.order import HashedOrder, OlmoCoreOrder, OlmoOrder, Order, OrderChoice
from jaxpretrain.data.sources import DataChoice
from jaxpretrain.data.text.text import TextData, TrainingText

GOLDEN = Path(__file__).parents[2] / "golden" / "olmo_order.json"
ORDERS: list[type[OrderChoice]] = [OlmoOrder, OlmoCoreOrder, HashedOrder]
VOCAB = {"tokens": 1000}


@dataclass(frozen=True)
class Saved:
    """The part of a run's config that is about data."""

    data: DataChoice


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """What scripts/make_golden_order.py saw OLMo and OLMo-core do."""
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def data(golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TextData:
    """The files that the script wrote: ids count up over all of them."""
    folder = tmp_path_factory.mktemp("golden")
    first = 0
    for number, num_tokens in enumerate(golden["file_tokens"]):
        np.arange(first, first + num_tokens).astype("<u2").tofile(folder / f"{number}.npy")
        first += num_tokens
    return TextData(
        root=str(folder),
        seq_len=golden["seq_len"],
        order=OlmoOrder(epoch_multiple=golden["batch_size"]),
    )


def _open(data: TextData, golden: dict[str, Any], order: OrderChoice | None = None) -> TrainingText:
    return replace(data, order=order or data.order).open(seed=golden["seed"], limits=VOCAB)


def _batches(opened: TrainingText, golden: dict[str, Any], num_epochs: int) -> list:
    """First tokens of the batches, epoch by epoch, as the fixture has them."""
    size = golden["batch_size"]
    num_batches = num_epochs * opened.num_examples // size
    firsts = [
        opened.batch(np.arange(step * size, (step + 1) * size))["tokens"][:, 0].tolist()
        for step in range(num_batches)
    ]
    per_epoch = num_batches // num_epochs
    return [firsts[epoch * per_epoch :][:per_epoch] for epoch in range(num_epochs)]


def test_batches_are_olmos(data: TextData, golden: dict[str, Any]):
    """Over epochs. They were the same for any number of ranks and workers, and after restarts."""
    opened = _open(data, golden)
    assert _batches(opened, golden, len(golden["olmo"])) == golden["olmo"]


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_batches_are_olmo_cores(data: TextData, golden: dict[str, Any], chunk: int):
    """With chunks each file is cut to a whole number of them."""
    expected = golden["olmo_core"][str(chunk)]
    opened = _open(data, golden, OlmoCoreOrder(golden["batch_size"], chunk))
    assert _batches(opened, golden, len(expected)) == expected


@pytest.mark.parametrize("world_size", ["1", "4"])
def test_an_epoch_of_the_number_of_devices_is_olmos_global_indices(
    data: TextData, golden: dict[str, Any], world_size: str
):
    opened = _open(data, golden, OlmoOrder(int(world_size)))
    indices = opened.order(np.arange(opened.num_examples))
    assert indices.tolist() == golden["olmo_indices"][world_size]


def test_olmos_file_of_indices_gives_its_batches(
    data: TextData, golden: dict[str, Any], tmp_path: Path
):
    path = tmp_path / "global_indices.npy"
    np.array(golden["olmo_indices"]["4"], "<u4").tofile(path)
    opened = replace(data, order=OlmoOrder(golden["batch_size"], str(path))).open(
        seed=golden["seed"] + 1, limits=VOCAB
    )
    assert _batches(opened, golden, 1) == golden["olmo"][:1]
    assert _batches(opened, golden, 2)[1] != golden["olmo"][1]


def test_a_file_of_indices_may_be_in_a_bucket(bucket: Path, tmp_path: Path):
    indices = np.array([3, 1, 0, 2, 4], "<u4")
    (bucket / "indices.npy").write_bytes(indices.tobytes())
    (tmp_path / "indices.npy").write_bytes(indices.tobytes())
    there, here = (OlmoOrder(1, f"{place}/indices.npy") for place in (bucket, tmp_path))
    assert there.identity() == here.identity()
    assert there.make(5, seed=1)(np.arange(5)).tolist() == [3, 1, 0, 2, 4]
    with pytest.raises(InputError, match="^gs://bucket/none.npy: there is no such file or folder"):
        OlmoOrder(1, "gs://bucket/none.npy").make(5, seed=1)


def _epochs(order: Order, num_epochs: int) -> list[np.ndarray]:
    return np.split(order(np.arange(num_epochs * order.epoch_size)), num_epochs)


def test_olmo_order_is_numpys_shuffle_of_each_epoch():
    """The definition: PCG64(seed + epoch), uint32 indices; OLMo-core's first epoch is 1."""
    num_examples, seed = 31, 6198
    for order, first in ((OlmoOrder(), 0), (OlmoCoreOrder(), 1)):
        for epoch, indices in enumerate(_epochs(order.make(num_examples, seed), 3)):
            expected = np.arange(num_examples, dtype=np.uint32)
            np.random.Generator(np.random.PCG64(seed + first + epoch)).shuffle(expected)
            np.testing.assert_array_equal(indices, expected)


@pytest.mark.parametrize(
    "ordering", [*(order() for order in ORDERS), OlmoCoreOrder(chunk=3)], ids=repr
)
@pytest.mark.parametrize("multiple", [1, 7, 8])
def test_an_epoch_is_the_first_positions_of_its_permutation(ordering: OrderChoice, multiple: int):
    """Of every order: floor(n / multiple) * multiple of them, with nothing twice."""
    num_examples = 60
    order = replace(ordering, epoch_multiple=multiple).make(num_examples, seed=5)
    assert order.epoch_size == num_examples // multiple * multiple
    whole = _epochs(ordering.make(num_examples, seed=5), 3)
    for epoch, indices in enumerate(_epochs(order, 3)):
        assert len(set(indices.tolist())) == order.epoch_size
        np.testing.assert_array_equal(indices, whole[epoch][: order.epoch_size])


def test_examples_after_the_last_whole_chunk_are_left_out():
    order = OlmoCoreOrder(chunk=3).make(11, seed=5)
    assert order.epoch_size == 9
    assert sorted(order(np.arange(9))) == list(range(9))


@pytest.mark.parametrize("cls", ORDERS)
def test_samples_do_not_depend_on_what_is_asked_before_or_with_them(cls: type[OrderChoice]):
    samples = np.arange(500)
    whole = cls().make(100, seed=7)(samples)
    asked = cls().make(100, seed=7)
    shuffled = np.random.default_rng(0).permutation(samples)
    np.testing.assert_array_equal(asked(shuffled), whole[shuffled])


@pytest.mark.parametrize(
    "ordering", [OlmoOrder(7), OlmoCoreOrder(7), OlmoCoreOrder(7, chunk=2), HashedOrder(7)]
)
def test_find_gives_every_sample_of_an_example(ordering: OrderChoice):
    order = ordering.make(40, seed=1)
    num_samples = 3 * order.epoch_size + 11
    examples = order(np.arange(num_samples))
    for example in range(40):
        expected = np.flatnonzero(examples == example).tolist()
        assert list(order.find(example, num_samples)) == expected


def test_orders_tell_themselves_apart(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 4)
    orderings = [
        *(order() for order in ORDERS),
        OlmoCoreOrder(chunk=2),
        OlmoOrder(epoch_multiple=2),
        *(OlmoOrder(global_indices=str(tmp_path / name)) for name in ("a", "b")),
    ]
    assert len({json.dumps(ordering.identity()) for ordering in orderings}) == len(orderings)


def test_identities_are_those_that_old_runs_have_in_their_fingerprints(tmp_path: Path):
    assert OlmoOrder().identity() == ["olmo", 1, 1, None]
    assert OlmoCoreOrder(512, 2).identity() == ["olmo_core", 2, 512, None]
    assert HashedOrder(3).identity() == ["hashed", 1, 3, None]
    (tmp_path / "a").write_bytes(b"abcd")
    digest = hashlib.sha256(b"abcd").hexdigest()
    assert OlmoOrder(4, str(tmp_path / "a")).identity() == ["olmo", 1, 4, digest]


def test_a_description_names_the_order_and_what_is_changed_in_it():
    assert OlmoOrder().describe() == "olmo order"
    assert OlmoOrder(global_indices="x").describe() == "olmo order, the first as x lists them"
    assert OlmoCoreOrder(chunk=2).describe() == "olmo_core order of 2 at a time"
    assert (OlmoCoreOrder().describe(), HashedOrder().describe()) == (
        "olmo_core order",
        "hashed order",
    )


@pytest.mark.parametrize("cls", ORDERS)
def test_no_examples_is_an_error(cls: type[OrderChoice]):
    with pytest.raises(InputError, match="not one full sequence"):
        cls().make(0, seed=0)


def test_impossible_orders_are_errors(tmp_path: Path):
    path = tmp_path / "indices"
    np.arange(5, dtype="<u4").tofile(path)
    with pytest.raises(InputError, match="data.order.chunk=0: must be positive"):
        validate(OlmoCoreOrder(chunk=0), "data.order")
    with pytest.raises(InputError, match="data.order.epoch_multiple=-1: must be positive"):
        validate(OlmoOrder(epoch_multiple=-1), "data.order")
    with pytest.raises(InputError, match="epoch_multiple is 8, and there are 7 examples"):
        OlmoOrder(epoch_multiple=8).make(7, seed=0)
    for num_examples in (4, 6):
        with pytest.raises(
            InputError, match=r"indices: holds 5 indices; .*data\.order\.epoch_multiple"
        ):
            OlmoOrder(global_indices=str(path)).make(num_examples, seed=0)
    listed = OlmoOrder(epoch_multiple=2, global_indices=str(path)).make(5, seed=0)
    assert listed(np.arange(4)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"order": "olmo", "epoch_multiple": 512}, OlmoOrder(512)),
        (
            {"order": "olmo", "order_chunk": 1, "epoch_multiple": 4, "global_indices": "x"},
            OlmoOrder(4, "x"),
        ),
        (
            {"order": "olmo_core", "order_chunk": 2, "epoch_multiple": 8, "global_indices": None},
            OlmoCoreOrder(8, 2),
        ),
        ({"order": "hashed", "order_chunk": 1, "epoch_multiple": 1}, HashedOrder()),
    ],
)
def test_the_order_of_an_old_run_is_read(old: dict[str, Any], now: OrderChoice):
    saved = {"data": {"class": "text_data", **old}}
    assert from_dict(Saved, upgraded(saved)).data.order == now


def test_the_order_of_old_images_and_mixtures_is_read():
    for name in ("mixture", "image_data"):
        saved = {"data": {"class": name, "order": "hashed"}}
        assert from_dict(Saved, upgraded(saved)).data.order == HashedOrder()
    probe = {"eval": {"probe": {"data": {"order": "hashed", "name": "x", "size": 8}}}}
    expected = {"order": {"class": "hashed_order"}, "size": 8}
    assert upgraded(probe) == {"eval": {"probe": {"data": expected}}}


def test_what_no_order_does_any_more_is_refused():
    saved = {"data": {"class": "text_data", "order": "hashed", "order_chunk": 2}}
    with pytest.raises(InputError, match="data.order.chunk: no such field in HashedOrder"):
        from_dict(Saved, upgraded(saved))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("data.order_chunk", "data.order.chunk, of data.order=olmo_core_order"),
        ("data.epoch_multiple", "data.order.epoch_multiple"),
        ("data.global_indices", "data.order.global_indices, of data.order=olmo_order"),
        ("data.order.chunk", "belongs to olmo_core_order; choose it first"),
        ("data.order", "expected one of olmo_order, olmo_core_order, hashed_order"),
    ],
)
def test_an_old_flag_says_what_is_written_now(path: str, message: str):
    with pytest.raises(InputError, match=message):
        apply_overrides(Saved(TextData()), [(path, "2")])


def test_the_identity_of_a_list_is_that_of_its_first_mib(tmp_path: Path):
    first = bytes(range(256)) * 4096
    (tmp_path / "long").write_bytes(first + b"rest")
    digest = hashlib.sha256(first).hexdigest()
    assert OlmoOrder(1, str(tmp_path / "long")).identity()[-1] == digest
