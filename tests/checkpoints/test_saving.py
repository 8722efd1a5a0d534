import gc
import json
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxpretrain.checkpoints import saving
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.saving import Save, move_aside, reason, remove

RANDOM = np.random.default_rng(0)


def _state() -> dict[str, jax.Array]:
    """Of 64 kB that do not compress."""
    return jax.device_put({"w": RANDOM.normal(size=(64, 256)).astype(np.float32), "step": 3})


@contextmanager
def _small_files() -> Iterator[None]:
    """The system refuses to let files grow, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_save_that_the_system_refuses_leaves_nothing_and_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """The next one is made as if nothing had been."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
    checkpoints.save(1, _state(), {})
    checkpoints.wait()
    with _small_files():
        checkpoints.save(2, _state(), {})
        checkpoints.wait()
    first, second = checkpoints.ended()
    assert (first.step, first.problem) == (1, None)
    assert (second.step, second.problem) == (2, "File too large")
    assert capfd.readouterr() == ("", "")
    checkpoints.save(3, _state(), {})
    checkpoints.wait()
    assert [(x.step, x.problem) for x in checkpoints.ended()] == [(3, None)]
    assert _names(tmp_path / "checkpoints") == {"3"}


def _go_away(directory: Path) -> None:
    shutil.rmtree(directory)


def _be_taken(directory: Path) -> None:
    (directory / "2").mkdir()


@pytest.mark.parametrize(
    ("happens", "problem"),
    [(_go_away, "No such file or directory: .*/checkpoints/2"), (_be_taken, "2 exists already")],
)
def test_a_save_that_cannot_begin_is_told_as_one_that_failed(
    tmp_path: Path, happens: Callable[[Path], None], problem: str
):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    happens(tmp_path / "checkpoints")
    checkpoints.save(2, _state(), {})
    checkpoints.wait()
    (outcome,) = checkpoints.ended()
    assert outcome.problem is not None
    assert re.search(problem, outcome.problem)


def test_a_folder_that_goes_while_it_is_written_fails_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """As when a mount vanishes. It is never made anew: that would hide it."""
    finalize = ocp.PyTreeCheckpointHandler.finalize

    def vanish(self: Any, directory: Any) -> None:
        shutil.rmtree(tmp_path / "checkpoints")
        finalize(self, directory)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", vanish)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(2, _state(), {})
    checkpoints.wait()
    (outcome,) = checkpoints.ended()
    assert outcome.problem is not None and "\n" not in outcome.problem
    assert not (tmp_path / "checkpoints").exists()
    assert capfd.readouterr() == ("", "")


def test_nothing_counts_before_all_is_written_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    may_commit = threading.Event()
    finalize = ocp.PyTreeCheckpointHandler.finalize

    def wait(self: Any, directory: Any) -> None:
        may_commit.wait()
        finalize(self, directory)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", wait)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, _state(), {})
    assert checkpoints.ended() == [] and checkpoints.steps() == []
    assert _names(tmp_path / "checkpoints") == {"1.orbax-checkpoint-tmp"}
    may_commit.set()
    checkpoints.wait()
    assert [(x.step, x.problem) for x in checkpoints.ended()] == [(1, None)]
    assert checkpoints.ended() == [] and checkpoints.steps() == [1]


def test_a_save_that_ctrl_c_did_not_wait_for_is_no_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else a line says that a step is saved that is not, and the next start misses it."""
    may_commit, commit = threading.Event(), Save._commit
    monkeypatch.setattr(Save, "_commit", lambda self: may_commit.wait() and commit(self))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, _state(), {})
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        checkpoints.wait()
    signal.signal(signal.SIGINT, previous)
    assert checkpoints.ended() == [] and checkpoints.steps() == []
    may_commit.set()
    checkpoints.wait()
    assert [(x.step, x.problem) for x in checkpoints.ended()] == [(1, None)]
    assert checkpoints.steps() == [1]


def test_orbax_itself_reads_what_is_saved(tmp_path: Path):
    state = _state()
    save = Save(tmp_path / "7", state, {"data_position": 7}, lambda: None)
    save.join()
    assert save.problem is None
    with ocp.CheckpointManager(tmp_path) as manager:
        assert manager.all_steps() == [7]
        found = manager.restore(7)
    assert found["meta"] == {"data_position": 7}
    np.testing.assert_array_equal(found["state"]["w"], state["w"])


def test_half_of_a_checkpoint_never_stands_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "4").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it is through
    monkeypatch.setattr("time.sleep", lambda _: None)
    remove(tmp_path / "4")
    assert _names(tmp_path) == {"4.orbax-checkpoint-tmp"}
    assert Checkpoints(tmp_path, read_only=True).steps() == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "/a/b"), "No space left on device: /a/b"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError("x" * 999), "x" * 160),
        (TimeoutError(), "TimeoutError"),
        (
            ValueError("DATA_LOSS: writing 'w': Disk quota exceeded [os_error_code='122']"),
            "Disk quota exceeded",
        ),
    ],
)
def test_the_reason_is_one_short_line(error: Exception, expected: str):
    assert reason(error) == expected


def test_the_documents_are_whole(tmp_path: Path):
    Save(tmp_path / "7", _state(), {"a": [1]}, lambda: None).join()
    assert json.loads((tmp_path / "7" / "meta" / "metadata").read_text()) == {"a": [1]}


def _put(bucket: Path, *names: str) -> None:
    for name in names:
        (bucket / "run" / "checkpoints" / name).write_bytes(name.encode())


def test_in_a_bucket_a_step_counts_from_its_last_file_on(bucket: Path):
    _put(bucket, "5/state/d/x", "5/commit_success.txt", "9/state/d/x", "notes/commit_success.txt")
    checkpoints = bucket / "run" / "checkpoints"
    assert Checkpoints(checkpoints, read_only=True).steps() == [5]
    assert (checkpoints / "9").is_dir()
    Checkpoints(checkpoints)  # one that writes removes what an interrupted save has left
    assert not (checkpoints / "9").exists() and (checkpoints / "notes").exists()


def test_in_a_bucket_removing_begins_with_the_last_file(bucket: Path):
    _put(bucket, "5/state/d/x", "5/commit_success.txt", "50/commit_success.txt")
    remove(bucket / "run" / "checkpoints" / "5")
    remove(bucket / "run" / "checkpoints" / "7")  # which is not there
    assert Checkpoints(bucket / "run" / "checkpoints", read_only=True).steps() == [50]
    assert not (bucket / "run" / "checkpoints" / "5" / "state" / "d" / "x").exists()


def test_in_a_bucket_a_damaged_checkpoint_is_copied_aside(bucket: Path):
    for target in ("5", "5.2"):
        _put(bucket, "5/state/d/x", "5/commit_success.txt")
        moved = move_aside(bucket / "run" / "checkpoints" / "5", bucket / "run" / "corrupt")
        assert moved == bucket / "run" / "corrupt" / target
        assert (moved / "state" / "d" / "x").read_bytes() == b"5/state/d/x"
        assert not (bucket / "run" / "checkpoints" / "5").exists()


def test_in_a_bucket_nothing_is_written_or_removed_where_that_is_not_allowed(bucket: Path):
    _put(bucket, "5/commit_success.txt")

    def guard() -> None:
        raise OSError("another process has taken the folder")

    # A step that is there stays there, and one of another run is left alone.
    for folder, allowed in (("5", lambda: None), ("6", guard)):
        _put(bucket, "6/state/of_another_run")
        path = bucket / "run" / "checkpoints" / folder
        save = Save(path, _state(), {}, lambda: None, allowed)
        save.join()
        assert save.problem is not None
        assert ("exists already" in save.problem) == (folder == "5")
    assert (bucket / "run" / "checkpoints" / "5" / "commit_success.txt").exists()
    assert (bucket / "run" / "checkpoints" / "6" / "state" / "of_another_run").exists()


def test_bits_that_read_other_than_written_never_become_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And the next save is made as if nothing had been."""
    read, answers = saving.part_checksum, [1, 0]
    monkeypatch.setattr(saving, "part_checksum", lambda part: read(part) + sum(answers[:1]))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, _state(), {})
    checkpoints.wait()
    answers.clear()
    checkpoints.save(1, _state(), {})
    checkpoints.wait()
    first, second = checkpoints.ended()
    assert first.problem in [f"{name} reads other than it was written" for name in ("step", "w")]
    assert (second.step, second.problem) == (1, None)
    assert _names(tmp_path / "checkpoints") == {"1"}


def test_arrays_are_read_back_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    read, sizes = saving.part_checksum, []
    monkeypatch.setattr(saving, "part_checksum", lambda x: (sizes.append(x.nbytes), read(x))[1])
    monkeypatch.setattr(saving, "_READ_BYTES", 20_000)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, _state(), {})
    checkpoints.wait()
    assert checkpoints.ended()[0].problem is None
    assert sorted(sizes) == [4, 7168, 19456, 19456, 19456]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that are free at each look; the last ones stay."""
    left: list[int] = []

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(saving.shutil, "disk_usage", usage)
    monkeypatch.setenv("JAXPRETRAIN_STORAGE_SECONDS", "0.5")
    return left


def test_a_save_waits_for_room_and_says_so(
    free: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    free[:] = [1000, 1000, 10**9]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(5, _state(), {})
    checkpoints.wait()
    assert checkpoints.ended()[0].problem is None and checkpoints.steps() == [5]
    assert capsys.readouterr().err == (
        "warning: step 5 waits up to 0 s for room on the disk: a checkpoint takes 6.1e-05 GiB, "
        "9.31e-07 GiB are free\n"
    )


def test_a_disk_that_stays_full_fails_the_save_in_one_line(free: list[int], tmp_path: Path):
    free[:] = [0]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.shortage(_state()) == "a checkpoint takes 6.1e-05 GiB, 0 GiB are free"
    checkpoints.save(5, _state(), {})
    checkpoints.wait()
    (save,) = checkpoints.ended()
    assert save.problem.startswith("No space left on device: a checkpoint takes")
    assert saving.is_full(save.problem) and not saving.is_full("File too large")
    assert _names(tmp_path / "checkpoints") == set()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
def test_memory_does_not_grow_with_the_number_of_saves(tmp_path: Path):
    """It is level from the twentieth save on; twenty of 8 MB that stayed would be 160 MB."""

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    state = jax.device_put({"w": RANDOM.normal(size=(2048, 1024)).astype(np.float32)})
    checkpoints, sizes = Checkpoints(tmp_path / "checkpoints", keep_last=1), []
    for step in range(1, 51):
        checkpoints.save(step, state, {})
        checkpoints.wait()
        (save,) = checkpoints.ended()
        assert save.problem is None and save.seconds > 0
        if step in (30, 50):
            sizes.append(resident())
    assert sizes[1] - sizes[0] < 24e6
