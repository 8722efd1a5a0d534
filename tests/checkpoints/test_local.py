"""Checkpoints of a host's own disk, here of one process; runs go on from them in test_saves.py."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.checkpoints.local import LocalCheckpoints, restore_newest
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.files import TEMPORARY
from tests.checkpoints.conftest import (
    assert_equal,
    data_files,
    layout_of,
    like_of,
    state_of,
    truncate,
    values_of,
)


def _saved(directory: Path, *steps: int) -> LocalCheckpoints:
    local = LocalCheckpoints(directory, Path("runs/x"))
    for step in steps:
        extra = {"data_position": step, "place": "disk"}
        local.save(step, state_of(layout_of(2, 2, 2), step), extra)
    local.wait()
    return local


def _restored(root: Path, local: LocalCheckpoints) -> Any:
    return restore_newest(Checkpoints(root / "checkpoints"), local, like_of(layout_of(2, 2, 2)))


def test_the_newest_two_are_kept_and_the_newest_comes_back(tmp_path: Path):
    local = _saved(tmp_path, 1, 2, 3)
    assert local.steps() == [2, 3]
    assert local.common_steps() == [3, 2]
    step, state, extra = _restored(tmp_path, local)
    assert (step, extra) == (3, {"data_position": 3, "place": "disk"})
    assert_equal(state, values_of(3))
    assert LocalCheckpoints(tmp_path, Path("runs/y")).steps() == []


def test_another_mesh_finds_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    local = _saved(tmp_path, 1)
    like = like_of(layout_of(1, 4, 1, num_devices=4))
    assert restore_newest(Checkpoints(tmp_path / "checkpoints"), local, like) is None
    assert "warning: local checkpoint 1 is left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["arrays.bin", "document.json"])
@pytest.mark.parametrize("content", [b"", b"x" * 500])
def test_a_damaged_one_is_left_out(tmp_path: Path, name: str, content: bytes):
    local = _saved(tmp_path, 1, 2)
    (local.directory / "2" / name).write_bytes(content)
    step, state, _ = _restored(tmp_path, local)
    assert step == 1
    assert_equal(state, values_of(1))


def test_bits_that_the_whole_array_has_not_are_noticed(tmp_path: Path):
    """The parts agree with their own sums, but not with the sum of the array on the devices."""
    local = _saved(tmp_path, 1)
    path = local.directory / "1" / "document.json"
    document = json.loads(path.read_text())
    document["arrays"]["params/w"]["checksum"] += 1
    path.write_text(json.dumps(document))
    assert _restored(tmp_path, local) is None


@pytest.mark.parametrize(
    ("folder", "disk", "damaged", "expected"),
    [
        ([4], [3, 5], [], (5, "disk")),
        ([4], [3, 5], ["disk 5"], (4, "folder")),
        ([4], [3, 5], ["disk 5", "folder 4"], (3, "disk")),
        ([2, 5], [3, 5], [], (5, "folder")),
        ([2, 5], [3, 5], ["folder 5"], (5, "disk")),
        ([2, 4, 6], [3, 5], ["folder 6"], (5, "disk")),
        ([2], [3, 5], ["disk 5", "disk 3"], (2, "folder")),
        ([], [3, 5], [], (5, "disk")),
        ([2], [], [], (2, "folder")),
    ],
)
def test_the_newest_sound_one_of_either_place_is_the_only_one_that_is_read(
    tmp_path: Path,
    folder: list[int],
    disk: list[int],
    damaged: list[str],
    expected: tuple[int, str],
):
    """What the newest one makes needless is not even looked at: a damaged one would move."""
    checkpoints, local = Checkpoints(tmp_path / "checkpoints"), _saved(tmp_path / "ssd", *disk)
    for step in folder:
        checkpoints.save(step, state_of(layout_of(2, 2, 2), step), {"place": "folder"})
    checkpoints.wait()
    for place in damaged:
        step = place.split()[1]
        if place.startswith("folder"):
            truncate(data_files(tmp_path / "checkpoints", int(step))[-1])
        else:
            (local.directory / step / "arrays.bin").write_bytes(b"")
    needless = [step for step in folder if step < expected[0]]
    for step in needless:
        truncate(data_files(tmp_path / "checkpoints", step)[-1])
    found = restore_newest(checkpoints, local, like_of(layout_of(2, 2, 2)))
    assert found is not None
    step, state, extra = found
    assert (step, extra["place"]) == expected
    assert_equal(state, values_of(step))
    assert set(needless) <= set(checkpoints.steps())


def test_those_after_a_step_can_be_abandoned(tmp_path: Path):
    local = _saved(tmp_path, 4, 6)
    local.abandon(4)
    assert local.steps() == [4]
    assert (local.directory / "6.abandoned").is_dir()
    local.remove()
    assert local.steps() == []


def test_those_of_other_numbers_of_processes_are_abandoned_too(tmp_path: Path):
    """Else a run that had two processes, then one and then two would go on from the wrong line."""
    local = _saved(tmp_path, 4)
    other = local.directory.with_name("1-of-2")
    for name in ("4", "6", "6.abandoned"):
        (other / name).mkdir(parents=True)
    (other / "6" / "new").touch()
    local.abandon(4)
    assert sorted(path.name for path in other.iterdir()) == ["4", "6.abandoned"]
    assert (other / "6.abandoned" / "new").exists()


def test_the_disk_does_not_fill_up_with_what_is_of_no_use(tmp_path: Path):
    local = _saved(tmp_path, 1, 2)
    for name in ("3.abandoned", "5.abandoned", "10.abandoned", f"7{TEMPORARY}12"):
        (local.directory / name).mkdir()
    _saved(tmp_path, 3)
    left = {"2", "3", "5.abandoned", "10.abandoned"}
    assert {path.name for path in local.directory.iterdir()} == left


def test_a_relative_path_is_the_same_run_and_in_another_place_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    _saved(tmp_path / "ssd", 1)
    assert LocalCheckpoints(tmp_path / "ssd", tmp_path / "a" / "runs/x").steps() == [1]
    monkeypatch.chdir(tmp_path / "b")
    assert LocalCheckpoints(tmp_path / "ssd", Path("runs/x")).steps() == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    message = f"checkpoint.local_dir={tmp_path / 'file'}: Not a directory"
    with pytest.raises(InputError, match=re.escape(message)):
        LocalCheckpoints(tmp_path / "file", Path("runs/x"))
