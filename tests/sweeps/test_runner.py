import os
import signal
import sys

import pytest

from jaxpretrain.sweeps.runner import command_of, last_line, log_of, run_all
from tests.sweeps.tiny import Ended, tiny_sweep

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Scripted:
    """Gives each run the handle of its folder, and has room for some."""

    def __init__(self, handles, room=1):
        self.handles, self.room, self.started = handles, room, []

    @property
    def has_room(self):
        return sum(handle.polls >= 0 for _, handle in self.started) < self.room

    def start(self, command, log):
        name = log.name.removesuffix(".log")
        run = f"{log.parent.name}/{name}"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("a line\nerror: no such file\nleaving\n")
        self.started.append((run, self.handles.get(run) or Ended(0)))
        return self.started[-1][1]


@pytest.fixture
def sweep(tmp_path):
    return tiny_sweep(tmp_path)


@pytest.fixture(autouse=True)
def heard():
    """Lets signals do what they do by default: a shell's background jobs ignore some."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(sweep, folder, launcher, **known):
    states = {run.folder: "waiting" for run in sweep.runs()} | known
    messages = []
    seen = []

    def on_change(states, message):
        messages.extend([message] if message else [])
        seen.append(dict(states))

    return run_all(sweep, folder, launcher, states, on_change), messages, seen


FIRST, SECOND, THIRD, FOURTH = [
    f"d_ff={d_ff}/seed{seed}" for seed in (6198, 6199) for d_ff in (32, 40)
]


def test_pairs_run_early_and_a_failed_run_stops_no_other(sweep, tmp_path):
    launcher = Scripted({SECOND: Ended(2)})
    states, messages, _ = start(sweep, tmp_path, launcher)
    assert [name for name, _ in launcher.started] == [FIRST, SECOND, THIRD, FOURTH]
    assert states == {FIRST: "done", SECOND: "failed", THIRD: "done", FOURTH: "done"}
    assert messages == [
        f"{SECOND} failed: error: no such file ({tmp_path / 'd_ff=40' / 'seed6198.log'})"
    ]


def test_done_and_failed_runs_are_not_started_again(sweep, tmp_path):
    known = {FIRST: "done", SECOND: "failed", THIRD: "stopped"}
    launcher = Scripted({})
    states, _, _ = start(sweep, tmp_path, launcher, **known)
    assert [name for name, _ in launcher.started] == [THIRD, FOURTH]
    assert states == {FIRST: "done", SECOND: "failed", THIRD: "done", FOURTH: "done"}


def test_as_many_run_at_a_time_as_there_is_room_for(sweep, tmp_path):
    launcher = Scripted({run.folder: Ended(0, polls=2) for run in sweep.runs()}, room=2)
    _, _, seen = start(sweep, tmp_path, launcher)
    assert max(list(states.values()).count("running") for states in seen) == 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_all_and_the_same_command_goes_on(sweep, tmp_path, number):
    class Asks(Ended):
        def poll(self):
            if not self.stopped:
                os.kill(os.getpid(), number)
            return super().poll() if self.stopped else None

    handle = Asks(75)
    states, messages, _ = start(sweep, tmp_path, Scripted({FIRST: handle}))
    assert handle.stopped == ["stop"]
    assert states == {FIRST: "stopped", SECOND: "waiting", THIRD: "waiting", FOURTH: "waiting"}
    assert messages[0].startswith("asked to stop: 1 running save and leave")
    assert start(sweep, tmp_path, Scripted({}), **states)[0] == dict.fromkeys(states, "done")


def test_a_second_signal_ends_all_at_once(sweep, tmp_path):
    class Asks(Ended):
        def poll(self):
            os.kill(os.getpid(), signal.SIGINT)
            return super().poll() if self.stopped[1:] else None

    handle = Asks(-9)
    before = signal.getsignal(signal.SIGINT)
    states, messages, _ = start(sweep, tmp_path, Scripted({FIRST: handle}))
    assert handle.stopped[:2] == ["stop", "kill"]
    assert states[FIRST] == "stopped"
    assert messages[1] == "asked again: all runs are ended at once"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_was_ignored_stays_so(sweep, tmp_path):
    class Hangs(Ended):
        def poll(self):
            os.kill(os.getpid(), signal.SIGHUP)
            return super().poll()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        states, messages, _ = start(sweep, tmp_path, Scripted({FIRST: Hangs(0)}))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert set(states.values()) == {"done"}
    assert messages == []


def test_an_error_of_ours_leaves_no_run_behind(sweep, tmp_path):
    handle = Ended(0, polls=100)

    def on_change(states, message):
        raise OSError("the disk is full")

    states = {run.folder: "waiting" for run in sweep.runs()}
    with pytest.raises(OSError, match="full"):
        run_all(sweep, tmp_path, Scripted({FIRST: handle}), states, on_change)
    assert handle.stopped == ["stop"]


def test_a_run_is_a_command_that_can_be_typed(sweep, tmp_path):
    run = sweep.runs()[1]
    command = command_of(sweep, run, tmp_path)
    assert command[:3] == [sys.executable, "-m", "jaxpretrain.main"]
    assert command[3:5] == [f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / SECOND}"]
    assert command[5:] == ["--config.seed=6198", "--config.model.d_ff=40"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("error: early\n" + "fine\n" * 30, "fine"),
        ("error: it is\nmore\n\n", "error: it is"),
        ("", "no output"),
    ],
)
def test_the_last_line_says_why(tmp_path, text, line):
    log = log_of(tmp_path, "arm/seed1")
    assert last_line(log) == "no output"
    log.parent.mkdir()
    log.write_text(text)
    assert last_line(log) == line
