"""The watchdog, without the end of the process; tests/faults/ lets real runs stand still."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.train import watchdog as module
from jaxpretrain.train.watchdog import Watchdog, standing


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


def test_processes_at_one_place_are_named_together() -> None:
    where = {0: "step 31", 2: "step 31", 3: "step 31", 1: "batch"}
    assert standing(where, 5) == (
        "process 0, 2-3 at step 31, process 1 at batch, process 4 does not answer"
    )
