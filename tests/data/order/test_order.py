import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.order.order import Order, Ordering, OrderName
from jaxpretrain.data.text.text import TextData, TrainingText

GOLDEN = Path(__file__).parents[2] / "golden" / "olmo_order.json"
NAMES: list[OrderName] = ["olmo", "olmo_core", "hashed"]
VOCAB = {"tokens": 1000}


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
        root=str(folder), seq_len=golden["seq_len"], epoch_multiple=golden["batch_size"]
    )


def _open(data: TextData, golden: dict[str, Any], **changes: Any) -> TrainingText:
    return replace(data, **changes).open(seed=golden["seed"], limits=VOCAB)


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
    opened = _open(data, golden, order="olmo_core", order_chunk=chunk)
    assert _batches(opened, golden, len(expected)) == expected


@pytest.mark.parametrize("world_size", ["1", "4"])
def test_an_epoch_of_the_number_of_devices_is_olmos_global_indices(
    data: TextData, golden: dict[str, Any], world_size: str
):
    opened = _open(data, golden, epoch_multiple=int(world_size))
    indices = opened.order(np.arange(opened.num_examples))
    assert indices.tolist() == golden["olmo_indices"][world_size]


def test_olmos_file_of_indices_gives_its_batches(
    data: TextData, golden: dict[str, Any], tmp_path: Path
):
    path = tmp_path / "global_indices.npy"
    np.array(golden["olmo_indices"]["4"], "<u4").tofile(path)
    opened = _open(data, golden, order="hashed", global_indices=str(path))
    assert _batches(opened, golden, 1) == golden["olmo"][:1]
    assert _batches(opened, golden, 2)[1] != golden["olmo"][1]


def _epochs(order: Order, num_epochs: int) -> list[np.ndarray]:
    return np.split(order(np.arange(num_epochs * order.epoch_size)), num_epochs)


def test_olmo_order_is_numpys_shuffle_of_each_epoch():
    """The definition: PCG64(seed + epoch), uint32 indices; OLMo-core's first epoch is 1."""
    num_examples, seed = 31, 6198
    for name, first in (("olmo", 0), ("olmo_core", 1)):
        for epoch, indices in enumerate(_epochs(Ordering(name).make(num_examples, seed), 3)):
            expected = np.arange(num_examples, dtype=np.uint32)
            np.random.Generator(np.random.PCG64(seed + first + epoch)).shuffle(expected)
            np.testing.assert_array_equal(indices, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("chunk", "multiple"), [(1, 1), (1, 8), (3, 1), (3, 7)])
def test_an_epoch_is_the_first_positions_of_its_permutation(
    name: OrderName, chunk: int, multiple: int
):
    """Of every order: floor(n / multiple) * multiple of them, with nothing twice."""
    num_examples = 60
    order = Ordering(name, chunk, multiple).make(num_examples, seed=5)
    assert order.epoch_size == num_examples // multiple * multiple
    whole = _epochs(Ordering(name, chunk).make(num_examples, seed=5), 3)
    for epoch, indices in enumerate(_epochs(order, 3)):
        assert len(set(indices.tolist())) == order.epoch_size
        np.testing.assert_array_equal(indices, whole[epoch][: order.epoch_size])


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_depend_on_what_is_asked_before_or_with_them(name: OrderName):
    samples = np.arange(500)
    whole = Ordering(name).make(100, seed=7)(samples)
    asked = Ordering(name).make(100, seed=7)
    shuffled = np.random.default_rng(0).permutation(samples)
    np.testing.assert_array_equal(asked(shuffled), whole[shuffled])


@pytest.mark.parametrize("name", NAMES)
def test_find_gives_every_sample_of_an_example(name: OrderName):
    order = Ordering(name, chunk=2, epoch_multiple=7).make(40, seed=1)
    num_samples = 3 * order.epoch_size + 11
    examples = order(np.arange(num_samples))
    for example in range(40):
        expected = np.flatnonzero(examples == example).tolist()
        assert list(order.find(example, num_samples)) == expected


def test_orders_tell_themselves_apart(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 4)
    orderings = [
        *map(Ordering, NAMES),
        Ordering("olmo", chunk=2),
        Ordering("olmo", epoch_multiple=2),
        *(Ordering("olmo", global_indices=str(tmp_path / name)) for name in ("a", "b")),
    ]
    assert len({json.dumps(ordering.identity()) for ordering in orderings}) == len(orderings)


@pytest.mark.parametrize("name", NAMES)
def test_no_examples_is_an_error(name: OrderName):
    with pytest.raises(InputError, match="not one full sequence"):
        Ordering(name).make(0, seed=0)


def test_impossible_orders_are_errors(tmp_path: Path):
    path = tmp_path / "indices"
    np.arange(5, dtype="<u4").tofile(path)
    with pytest.raises(InputError, match="data.order_chunk is 0"):
        Ordering("olmo", chunk=0)
    with pytest.raises(InputError, match="data.epoch_multiple is -1"):
        Ordering("olmo", epoch_multiple=-1)
    with pytest.raises(InputError, match="epoch_multiple is 8, and there are 7 examples"):
        Ordering("olmo", epoch_multiple=8).make(7, seed=0)
    for num_examples in (4, 6):
        with pytest.raises(InputError, match=r"indices: holds 5 indices; .*data\.epoch_multiple"):
            Ordering("olmo", global_indices=str(path)).make(num_examples, seed=0)
    listed = Ordering("olmo", epoch_multiple=2, global_indices=str(path)).make(5, seed=0)
    assert listed(np.arange(4)).tolist() == [0, 1, 2, 3]
