"""The watchdog, without the end of the process; tests/faults/ lets real runs stand still."""

import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel import distributed, peers
from jaxpretrain.train import watchdog as module
from jaxpretrain.train.watchdog import Watchdog, read_places, standing


class Clock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    return clock


def _train(dog: Watchdog, clock: Clock, *durations: float) -> None:
    for step, seconds in enumerate(durations, start=1):
        dog.enter("step", step)
        clock.now += seconds
        dog.finish(step)


def test_without_a_limit_it_follows_from_the_slowest_normal_step(clock: Clock) -> None:
    dog = Watchdog(None)
    _train(dog, clock, 90.0, 1.0, 2.0)  # the first is no normal one
    assert dog.seconds() == module.DEFAULT_SECONDS
    _train(dog, clock, 30.0)
    assert dog.seconds() == module.NUM_STEPS * 30.0
    dog.enter("save", 4, allowance=1000.0)
    assert dog.seconds() == 1000.0
    clock.now += 500.0
    _train(dog, clock, 1.0)  # after a save, which is no step
    assert dog.seconds() == module.NUM_STEPS * 30.0


def test_a_limit_holds_for_every_phase_once_a_step_is_known(clock: Clock) -> None:
    dog = Watchdog(None)
    dog.begin(20)
    dog.enter("compile", allowance=1000.0)
    assert dog.seconds() == 20
    dog.enter("first batch", 1)
    assert dog.seconds() == 20
    dog.enter("step", 1)
    assert dog.seconds() == module.DEFAULT_SECONDS
    _train(dog, clock, 9.0, 9.0)
    assert dog.seconds() == 20


def test_a_limit_below_the_time_of_a_step_is_bad_input(clock: Clock) -> None:
    dog = Watchdog(None)
    dog.begin(5)
    with pytest.raises(InputError, match=r"stall=5 seconds is less than a step takes \(7.0 s\)"):
        _train(dog, clock, 90.0, 7.0)
    _train(dog, clock, 9.0)  # it is said once


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The exit codes with which the process would have ended."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        sys.exit(code)  # the thread

    monkeypatch.setattr(module.os, "_exit", leave)
    monkeypatch.setattr(module, "_MAX_PAUSE", 0.02)
    monkeypatch.setattr(module, "DEFAULT_SECONDS", 0.3)
    yield codes


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_stands_still_leaves_its_stacks_and_its_place(
    ended: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Watchdog(tmp_path) as dog:
        dog.enter("evaluation", 1200)
        dog._thread.join(10.0)
    assert ended == [76]
    text = (tmp_path / "stacks" / "0.txt").read_text()
    assert text.startswith("process 0 of 1, ")
    assert "0 s are allowed: evaluation of step 1,200\n" in text
    assert "thread MainThread:" in text
    assert "test_a_run_that_stands_still" in text and "in join" in text
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: no progress for 0 s, 0 s are allowed: it stands at evaluation of step 1,200; "
        f"stacks: {tmp_path / 'stacks'}"
    )


def test_progress_keeps_a_run_alive(ended: list[int], tmp_path: Path) -> None:
    with Watchdog(tmp_path) as dog:
        dog.enter("evaluation", 0)
        for _ in range(25):
            threading.Event().wait(0.04)
            dog.beat()
    assert ended == [] and not (tmp_path / "stacks").exists()


def _among(monkeypatch: pytest.MonkeyPatch, process: int, num_processes: int) -> None:
    """Has this process be one of several."""
    monkeypatch.setattr(distributed, "process_id", lambda: process)
    monkeypatch.setattr(distributed, "num_processes", lambda: num_processes)
    monkeypatch.setattr(distributed, "has_others", lambda: True)
    monkeypatch.setattr(peers, "_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.3)


def _never(*_: object) -> dict[int, str]:
    """A call to the service of a process that is stopped."""
    threading.Event().wait()
    raise AssertionError


def _write_place(folder: Path, process: int, age: timedelta, place: str) -> None:
    when = (datetime.now().astimezone() - age).isoformat(timespec="seconds")
    (folder / f"{process}.txt").write_text(
        f"process {process} of 3, 77 on host, {when}\nno progress for 9 s: {place}\n\nthread x:\n"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("process", [1, 2])
def test_a_first_process_that_never_answers_keeps_nobody(
    process: int,
    ended: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others find each other in the folder, and the lowest of them tells for all."""
    _among(monkeypatch, process, 3)
    monkeypatch.setattr(distributed, "publish", _never)
    monkeypatch.setattr(distributed, "published", _never)
    (tmp_path / "stacks").mkdir()
    _write_place(tmp_path / "stacks", 0, timedelta(hours=1), "save of step 3")  # another start's
    _write_place(tmp_path / "stacks", 3 - process, -timedelta(seconds=2), "batch of step 8")
    began = time.monotonic()
    with Watchdog(tmp_path) as dog:
        dog.met()
        dog.enter("evaluation", 7)
        dog._thread.join(20.0)
    assert ended == [76]
    assert time.monotonic() - began < 8.0
    assert "thread MainThread:" in (tmp_path / "stacks" / f"{process}.txt").read_text()
    lines = capsys.readouterr().err.splitlines()
    if process == 2:
        assert lines == []
    else:
        places = (
            "process 0 does not answer, process 1 at evaluation of step 7, "
            "process 2 at batch of step 8"
        )
        assert lines == [
            f"error: no progress for 0 s, 0 s are allowed: {places}; stacks: {tmp_path / 'stacks'}"
        ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_silence_ends_a_phase_that_has_no_limit(
    ended: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Process 1 is heard once and then no more."""
    _among(monkeypatch, 0, 2)
    board: dict[str, dict[int, str]] = {"alive": {1: "5"}}
    monkeypatch.setattr(
        distributed, "publish", lambda name, value: board.setdefault(name, {}).update({0: value})
    )
    monkeypatch.setattr(distributed, "published", lambda name: dict(board.get(name, {})))
    monkeypatch.setattr(peers, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(peers, "_ALIVE_SECONDS", 0.3)
    with Watchdog(tmp_path) as dog:
        dog.met()
        assert dog.seconds() == float("inf")
        dog._thread.join(20.0)
    assert ended == [76]
    assert (tmp_path / "stacks" / "0.txt").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: process 1 says nothing for 1 s: process 0 at start, process 1 does not answer; "
        f"stacks: {tmp_path / 'stacks'}"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_is_not_faster_than_the_end_by_the_watchdog(
    ended: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of JAX, which misses the process that the watchdog has missed before."""
    write = module.write_atomically
    writes = threading.Event()

    def write_slowly(path: Path, text: str) -> None:
        writes.set()
        time.sleep(0.5)
        write(path, text)

    monkeypatch.setattr(module, "write_atomically", write_slowly)
    with pytest.raises(RuntimeError), Watchdog(tmp_path) as dog:
        dog.enter("evaluation", 7)
        assert writes.wait(10.0)
        raise RuntimeError("timed out")
    assert ended == [76]


@pytest.mark.parametrize("is_silent", [True, False])
def test_an_error_that_comes_of_a_silent_process_is_a_stall(
    is_silent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX waits for others half a minute in some places, and raises an error then."""
    _among(monkeypatch, 1, 2)
    board: dict[str, dict[int, str]] = {}
    monkeypatch.setattr(
        distributed, "publish", lambda name, value: board.setdefault(name, {}).update({1: value})
    )
    published = _never if is_silent else (lambda name: dict(board.get(name, {})))
    monkeypatch.setattr(distributed, "published", published)
    monkeypatch.setattr(peers, "_ALIVE_SECONDS", 0.5)
    codes: list[int] = []
    monkeypatch.setattr(module.os, "_exit", codes.append)
    monkeypatch.setattr(module, "_MAX_PAUSE", 0.02)
    with pytest.raises(RuntimeError), Watchdog(tmp_path) as dog:
        dog.met()
        dog.enter("step", 1)
        raise RuntimeError("GetKeyValue() timed out")
    assert codes == ([76] if is_silent else [])
    if is_silent:
        text = (tmp_path / "stacks" / "1.txt").read_text()
        assert "process 0 says nothing for 1 s: step 1\n" in text
        assert "RuntimeError: GetKeyValue() timed out" in text


def test_places_are_read_from_the_stacks_of_this_start(tmp_path: Path) -> None:
    _write_place(tmp_path, 1, timedelta(seconds=5), "step 4")
    _write_place(tmp_path, 2, timedelta(seconds=-5), "save of step 1,200")
    (tmp_path / "3.txt").write_text("")
    assert read_places(tmp_path, datetime.now().astimezone()) == {2: "save of step 1,200"}


def test_processes_at_one_place_are_named_together() -> None:
    where = {0: "step 31", 2: "step 31", 3: "step 31", 1: "batch"}
    assert standing(where, 5) == (
        "process 0, 2-3 at step 31, process 1 at batch, process 4 does not answer"
    )
