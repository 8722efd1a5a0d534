"""Checkpoints of a host's own disk, here of one process; runs go on from them in test_saves.py."""

import json
from pathlib import Path

import pytest

from jaxpretrain.checkpoints.local import LocalCheckpoints
from tests.checkpoints.conftest import assert_equal, layout_of, like_of, state_of, values_of


def _saved(directory: Path, *steps: int) -> LocalCheckpoints:
    local = LocalCheckpoints(directory, Path("runs/x"))
    for step in steps:
        local.save(step, state_of(layout_of(2, 2, 2), step), {"data_position": step})
    local.wait()
    return local


def test_the_newest_two_are_kept_and_the_newest_comes_back(tmp_path: Path):
    local = _saved(tmp_path, 1, 2, 3)
    assert local.steps() == [2, 3]
    step, state, extra = local.restore_newest(like_of(layout_of(2, 2, 2)), after=0)
    assert (step, extra) == (3, {"data_position": 3})
    assert_equal(state, values_of(3))
    assert local.restore_newest(like_of(layout_of(2, 2, 2)), after=3) is None
    assert LocalCheckpoints(tmp_path, Path("runs/y")).steps() == []


def test_another_mesh_finds_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    local = _saved(tmp_path, 1)
    assert local.restore_newest(like_of(layout_of(1, 4, 1, num_devices=4)), after=0) is None
    assert "warning: local checkpoint 1 is left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["arrays.bin", "document.json"])
@pytest.mark.parametrize("content", [b"", b"x" * 500])
def test_a_damaged_one_is_left_out(tmp_path: Path, name: str, content: bytes):
    local = _saved(tmp_path, 1, 2)
    (local.directory / "2" / name).write_bytes(content)
    step, state, _ = local.restore_newest(like_of(layout_of(2, 2, 2)), after=0)
    assert step == 1
    assert_equal(state, values_of(1))


def test_bits_that_the_whole_array_has_not_are_noticed(tmp_path: Path):
    """The parts agree with their own sums, but not with the sum of the array on the devices."""
    local = _saved(tmp_path, 1)
    path = local.directory / "1" / "document.json"
    document = json.loads(path.read_text())
    document["arrays"]["params/w"]["checksum"] += 1
    path.write_text(json.dumps(document))
    assert local.restore_newest(like_of(layout_of(2, 2, 2)), after=0) is None


def test_those_after_a_step_can_be_abandoned(tmp_path: Path):
    local = _saved(tmp_path, 4, 6)
    local.abandon(4)
    assert local.steps() == [4]
    assert (local.directory / "6.abandoned").is_dir()
    local.remove()
    assert local.steps() == []
