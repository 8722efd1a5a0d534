import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.streamed import CorruptCheckpoint, Streamed, write_streamed
from jaxpretrain.train.step import TrainState
from tests.checkpoints.conftest import (
    assert_equal,
    data_files,
    flip,
    layout_of,
    like_of,
    shardings,
    truncate,
    values_of,
)

# Orbax leaves the other reads of a damaged checkpoint unfinished, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _streamed(array: np.ndarray) -> Streamed:
    """Part by part: a row at a time."""
    return Streamed(array.shape, array.dtype, lambda: np.split(array, len(array)))


def _write_streamed(directory: Path, values: TrainState) -> None:
    count = Streamed((), np.dtype(np.int32), lambda: [np.array(7, np.int32)])
    arrays = {name: _streamed(a) for name, a in to_named(values).items() if np.ndim(a)}
    missing = set(to_named(values)) - set(arrays)
    write_streamed(directory, 3, arrays | dict.fromkeys(missing, count), {"data_position": 3})


def test_what_is_streamed_restores_as_what_is_saved(tmp_path: Path, capfd):
    """On any mesh, zeros included, and without a word from Orbax."""
    values = values_of(3)
    values.params["b"][:] = 0.0
    _write_streamed(tmp_path / "checkpoints", values)
    for layout in (layout_of(), layout_of(2, 2, 2), layout_of(num_devices=1)):
        found = Checkpoints(tmp_path / "checkpoints").restore_newest(like_of(layout))
        assert found is not None and (found[0], found[2]) == (3, {"data_position": 3})
        assert_equal(found[1].params, values.params)
        assert int(found[1].step) == int(found[1].optimizer["adam"].count) == 7
        assert found[1].params["w"].sharding == shardings(layout).params["w"]
    assert capfd.readouterr() == ("", "")


def test_a_large_stack_is_written_in_chunks_of_a_layer(tmp_path: Path):
    """So that a layer can be written, and read, alone."""
    shape = (2, 33, 2**19)  # 66 MiB a layer
    layers = lambda: (np.full((1, *shape[1:]), layer, np.float32) for layer in range(2))  # noqa: E731
    write_streamed(tmp_path, 0, {"w": Streamed(shape, np.dtype(np.float32), layers)}, {})
    chunks = sorted(path.name for path in (tmp_path / "0" / "state" / "w").glob("[0-9]*"))
    assert chunks == [f"{layer}.{half}.0" for layer in (0, 1) for half in (0, 1)]
    parts = Checkpoints(tmp_path).stream(0)["w"].parts()
    assert [(part.shape, part.max()) for part in parts] == [((1, *shape[1:]), i) for i in (0, 1)]


def test_a_streamed_checkpoint_that_is_damaged_falls_back(copy: Path):
    _write_streamed(copy.parent / "other", values_of(4))
    shutil.move(copy.parent / "other" / "3", copy / "4")
    truncate(copy / "4" / "state" / "params" / "w" / "0.0")
    found = Checkpoints(copy).restore_newest(like_of(layout_of()))
    assert found is not None and found[0] == 3


def test_arrays_can_be_read_part_by_part(saved: Path):
    arrays = Checkpoints(saved / "checkpoints", read_only=True).stream(2)
    expected = to_named(values_of(2))
    assert set(arrays) == set(expected)
    for name, array in arrays.items():
        parts = list(array.parts())
        found = np.concatenate(parts) if array.shape else parts[0]
        assert (array.shape, array.dtype) == (np.shape(expected[name]), found.dtype)
        np.testing.assert_array_equal(found, expected[name])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damage_is_noticed_part_by_part(copy: Path, damage):
    damage(data_files(copy, 3)[-1])
    with pytest.raises(CorruptCheckpoint):
        for array in Checkpoints(copy).stream(3).values():
            list(array.parts())


@pytest.mark.parametrize(("key", "value"), [("shape", [128, 64]), ("dtype", "int32")])
def test_arrays_that_are_not_stored_as_the_metadata_says_are_noticed(
    copy: Path, key: str, value: Any
):
    path = copy / "3" / "meta" / "metadata"
    document = json.loads(path.read_text())
    document["arrays"]["params/w"][key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptCheckpoint, match="params/w is stored as"):
        list(Checkpoints(copy).stream(3)["params/w"].parts())


def test_other_bytes_are_noticed_part_by_part(copy: Path):
    shutil.rmtree(copy / "3" / "state")
    shutil.copytree(copy / "2" / "state", copy / "3" / "state")
    with pytest.raises(CorruptCheckpoint, match="the checksum of params/w differs"):
        list(Checkpoints(copy).stream(3)["params/w"].parts())
