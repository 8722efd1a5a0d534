"""Runs a sweep: starts its runs, follows them, and stops them together."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jaxpretrain.config.command import EXIT_STOPPED
from jaxpretrain.sweeps.arms import Sweep, SweepRun
from jaxpretrain.sweeps.launcher import Handle, Launcher
from jaxpretrain.sweeps.state import State

_POLL_SECONDS = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

OnChange = Callable[[Mapping[str, State], str | None], None]
"""A function that is called with the states of all runs: often, and with a message at some."""


def run_all(
    sweep: Sweep,
    folder: Path,
    launcher: Launcher,
    states: Mapping[str, State],
    on_change: OnChange,
) -> dict[str, State]:
    """Runs all that waits or was stopped, and returns the state of each run at the end.

    The first Ctrl-C or SIGTERM asks all runs to save and leave; the second ends them at once. A run
    that fails is named with the last line of its log and stops no other.

    Args:
      sweep: the sweep.
      folder: the folder that holds those of the runs.
      launcher: the place where they are started.
      states: the state of each run before the start.
      on_change: called while runs go on, see `OnChange`.
    """
    states = dict(states)
    waiting = [run for run in sweep.runs() if states[run.folder] in ("waiting", "stopped")]
    states |= {run.folder: "waiting" for run in waiting}
    running: dict[str, Handle] = {}
    with _asked() as asked:
        try:
            while running or (waiting and not asked.times):
                while waiting and not asked.times and launcher.has_room:
                    run = waiting.pop(0)
                    log = log_of(folder, run.folder)
                    running[run.folder] = launcher.start(command_of(sweep, run, folder), log)
                    states[run.folder] = "running"
                for name, handle in list(running.items()):
                    if (code := handle.poll()) is not None:
                        del running[name]
                        states[name] = _state(code, is_asked=asked.times > 0)
                        if states[name] == "failed":
                            log = log_of(folder, name)
                            on_change(states, f"{name} failed: {last_line(log)} ({log})")
                if message := asked.pass_on(running):
                    on_change(states, message)
                on_change(states, None)
                if running:
                    time.sleep(_POLL_SECONDS)
        finally:  # an error of ours leaves no run behind
            for handle in running.values():
                handle.stop()
    for run in waiting:
        if (folder / run.folder / "metrics.jsonl").exists():
            states[run.folder] = "stopped"
    on_change(states, None)
    return states


def command_of(sweep: Sweep, run: SweepRun, folder: Path) -> list[str]:
    """Returns the command that trains a run on this machine."""
    return [sys.executable, "-m", "jaxpretrain.main", *flags_of(sweep, run, folder)]


def flags_of(sweep: Sweep, run: SweepRun, folder: Path) -> list[str]:
    """Returns the flags of the training command for a run."""
    return [
        f"--config={sweep.config}",
        f"--workdir={folder / run.folder}",
        *(f"--config.{path}={text}" for path, text in run.overrides),
    ]


def log_of(folder: Path, run: str) -> Path:
    """Returns the log of the run in a folder below that of the sweep."""
    return folder / f"{run}.log"


def last_line(log: Path) -> str:
    """Returns the last line of a log; the last error where one stands near the end."""
    with suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines[-20:] if line.startswith("error: ")]
        return (errors or lines or ["no output"])[-1].strip()
    return "no output"


def _state(code: int, *, is_asked: bool) -> State:
    if code == 0:
        return "done"
    if code == EXIT_STOPPED or (is_asked and (code < 0 or code > 128)):
        return "stopped"
    return "failed"


@dataclass
class _Asked:
    """Requests to stop, counted by a signal handler."""

    times: int = 0
    _passed_on: int = 0

    def pass_on(self, running: Mapping[str, Handle]) -> str | None:
        """Tells the runs what was asked since the last call; returns a message about it."""
        if self.times == self._passed_on:
            return None
        self._passed_on = self.times
        for handle in running.values():
            handle.stop() if self.times == 1 else handle.kill()
        if self.times > 1:
            return "asked again: all runs are ended at once"
        return (
            f"asked to stop: {len(running)} running save and leave; the same command goes on. "
            "Ctrl-C once more ends them at once"
        )


@contextmanager
def _asked() -> Iterator[_Asked]:
    """Counts signals inside, but for those that are ignored, as under nohup."""
    asked = _Asked()

    def count(number: int, frame: FrameType | None) -> None:
        asked.times += 1

    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, count) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
