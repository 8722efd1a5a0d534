"""The watchdog: it ends processes that stand still, after they have written down where.

A thread of each process looks at the time of the last progress. Where that is too long ago, every
process writes its Python stacks and its phase to the run's folder, the first prints which process
stands where, and all exit with 76, which launchers start again. So they do where one of them says
nothing more (`parallel/peers.py`). The processes tell one another through the coordination service;
where process 0, which has it, does not answer, they read the stacks of the others in the folder.
All that could hang as well has a time limit of its own.

Noting progress is an assignment, and the thread wakes ten times in the time that is allowed.
"""

import math
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from jaxpretrain.config.command import EXIT_STALLED
from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel import distributed
from jaxpretrain.parallel.peers import Peers
from jaxpretrain.parallel.roll_call import in_ranges
from jaxpretrain.storage.files import write_atomically

DEFAULT_SECONDS = 300.0
"""Seconds without progress that are always allowed where `monitor.stall` is not given."""
NUM_STEPS = 20
"""Number of the slowest normal steps that are allowed where `monitor.stall` is not given."""
_MAX_PAUSE = 15.0
_WRITE_SECONDS = 30.0
"""Seconds that writing the stacks may take: the folder may be what hangs."""
_ANSWER_SECONDS = 10.0
"""Seconds in which process 0 answers, however busy it is; a stopped one never does."""

Phase = Literal[
    "rendezvous",
    "start",  # reads and checks data of any size, and so takes any time
    "restore",
    "compile",
    "first batch",
    "batch",
    "step",
    "evaluation",
    "save",
    "end",
]
"""The name of what a process does."""


@dataclass(frozen=True)
class _Mark:
    """The last progress of a process."""

    phase: Phase
    step: int | None
    seconds: float
    """The monotonic clock then."""
    allowance: float
    """Seconds that this phase may take, where `monitor.stall` is not given."""

    def __str__(self) -> str:
        if self.phase == "step":
            return f"step {self.step:,}"
        return self.phase if self.step is None else f"{self.phase} of step {self.step:,}"


class Watchdog:
    """Watches this process while inside; its methods are called by the main thread."""

    def __init__(self, workdir: Path | None) -> None:
        """Takes the folder of the run, whose `stacks/` gets the stacks; None: standard error."""
        self._workdir = workdir
        self._given: float | None = None
        self._began = datetime.now().astimezone()
        self._peers: Peers | None = None
        self._mark = _Mark("start", None, time.monotonic(), math.inf)
        self.spent: dict[Phase, float] = defaultdict(float)
        """Seconds that each phase has taken, the one that goes on left out."""
        self._entered = time.monotonic()
        self._finished: tuple[int, float] | None = None  # the last finished step, and when
        self._slowest = 0.0
        self._num_normal = 0
        self._ended = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # JAX has limits of its own in some places: an error here may only say that one is silent.
        if (peers := self._peers) and isinstance(error, RuntimeError) and (who := peers.missing()):
            self._end(_describe_silent(*who), error)
        self._ended.set()
        # It tells the others that this process is not silent but at its end. An error that comes
        # while the watchdog ends the process, such as JAX's about a silent one, must not be faster.
        self._thread.join(None if self._ending.locked() else 5.0)

    def met(self) -> None:
        """Notes that the processes have met: from now on, they hear one another."""
        if distributed.has_others():
            self._peers = Peers(distributed.process_id(), distributed.num_processes())

    def begin(self, stall: int | None) -> None:
        """Notes that a session begins, with `monitor.stall`; None: the limit follows from steps."""
        self._given = stall
        self.enter("start", allowance=math.inf)

    def enter(self, phase: Phase, step: int | None = None, *, allowance: float = 0.0) -> None:
        """Notes that this process begins a phase, which may take `allowance` seconds."""
        if phase not in ("step", "batch"):
            self._finished = None  # what comes next is no normal step
        now = time.monotonic()
        self.spent[self._mark.phase] += now - self._entered
        self._entered = now
        self._mark = _Mark(phase, step, now, allowance)

    def beat(self) -> None:
        """Notes progress inside a phase."""
        mark = self._mark
        self._mark = _Mark(mark.phase, mark.step, time.monotonic(), mark.allowance)

    def finish(self, step: int) -> None:
        """Notes that the devices have finished a step.

        InputError, in all processes: `monitor.stall` is shorter than the first normal step.
        """
        now = time.monotonic()
        if self._finished is not None:
            before, then = self._finished
            self._slowest = max(self._slowest, (now - then) / max(step - before, 1))
            self._num_normal += 1
        self._finished = step, now
        if self._given is not None and self._num_normal == 1:
            self._num_normal += 1
            problem = None
            if self._slowest > self._given:
                problem = (
                    f"--config.monitor.stall={self._given} seconds is less than a step takes "
                    f"({self._slowest:.1f} s); nothing else is wrong: allow more"
                )
            if problem := distributed.first_problem("stall is too short", problem):
                raise InputError(problem)

    def seconds(self) -> float:
        """Returns the seconds without progress that are allowed now."""
        if self._given is None:
            return max(DEFAULT_SECONDS, NUM_STEPS * self._slowest, self._mark.allowance)
        if self._mark.phase == "start":
            return self._mark.allowance
        # The first steps tell how long one takes.
        is_new = self._mark.phase in ("step", "batch") and self._num_normal == 0
        return max(self._given, DEFAULT_SECONDS) if is_new else self._given

    def _watch(self) -> None:
        while not self._ended.wait(self._pause()):
            passed = time.monotonic() - self._mark.seconds
            why = f"no progress for {passed:.0f} s"
            if passed > self.seconds():
                self._end(f"{why}, {self.seconds():.0f} s are allowed")
            elif self._peers is not None and (silent := self._peers.silent()):
                self._end(_describe_silent(*silent))
            elif self._peers is not None and self._peers.places:
                self._end(why)
        if self._peers is not None:
            self._peers.leave()

    def _pause(self) -> float:
        """Returns the seconds between two looks at the time."""
        return min(self.seconds() / 10, _MAX_PAUSE)

    def _end(self, why: str, error: BaseException | None = None) -> None:
        """Ends the process, whatever else stands still, and whatever error came of that."""
        with self._ending:
            _within(_ANSWER_SECONDS, distributed.leave)  # all leave: none counts as lost
            _within(_WRITE_SECONDS, lambda: self._write(why, error))
            if not _within(4 * _WRITE_SECONDS, lambda: self._tell(why)):  # the first may be slow
                _within(_ANSWER_SECONDS, lambda: _say(f"error: {why}: at {self._mark}"))
            os._exit(EXIT_STALLED)

    def _write(self, why: str, error: BaseException | None) -> None:
        """Writes the stacks of this process, and the error that came of the stall."""
        text = describe_stacks(f"{why}: {self._mark}")
        if error is not None:
            text += "\n" + "".join(traceback.format_exception(error))
        if self._workdir is None:
            sys.stderr.write(text)
            return
        folder = self._workdir / "stacks"
        folder.mkdir(exist_ok=True, parents=True)
        write_atomically(folder / f"{distributed.process_id()}.txt", text)

    def _tell(self, why: str) -> None:
        """Waits for the others, who write their stacks too; the first prints where all stand."""
        process, num_processes = distributed.process_id(), distributed.num_processes()
        where: Mapping[int, str] = {process: str(self._mark)}
        patience = 1.5 * self._pause() + 2.0  # until the others have looked at the time, too
        if (peers := self._peers) is not None:
            peers.report(str(self._mark))
            _until(lambda: process in peers.places, _ANSWER_SECONDS)
        if peers is None or process not in peers.places:  # process 0 does not answer
            if self._workdir is not None and num_processes > 1:
                where = _read_until(self._workdir / "stacks", self._began, patience) | where
        elif process == 0:
            # Those that stand still as a whole are not waited for.
            _until(lambda: peers.places.keys() >= peers.alive(), patience + _WRITE_SECONDS)
            where = peers.places
        else:
            _until(lambda: peers.is_told, patience + _WRITE_SECONDS + _ANSWER_SECONDS)
            where = peers.places
        if process == min(where) or process == 0:
            stacks = "" if self._workdir is None else f"; stacks: {self._workdir / 'stacks'}"
            _say(f"error: {why}: {standing(where, num_processes)}{stacks}")
        if process == 0 and num_processes > 1:
            # The service ends with this process, and those that lose it are aborted.
            if peers is None:
                time.sleep(patience)
            else:
                peers.tell()
                distributed.wait_until_gone(set(peers.places) - {0}, _ANSWER_SECONDS)


def standing(where: Mapping[int, str], num_processes: int) -> str:
    """Returns where processes stand in words, those at one place together."""
    groups: dict[str, list[int]] = defaultdict(list)
    for process in range(num_processes):
        groups[where.get(process, "")].append(process)
    if num_processes == 1:
        return f"it stands at {where.get(0, '?')}"
    return ", ".join(
        f"process {in_ranges(members)} " + (f"at {place}" if place else "does not answer")
        for place, members in sorted(groups.items(), key=lambda item: item[1][0])
    )


def describe_stacks(where: str) -> str:
    """Returns what this process does in text: where it stands, and the stack of each thread."""
    process, num_processes = distributed.process_id(), distributed.num_processes()
    lines = [
        f"process {process} of {num_processes}, {os.getpid()} on {socket.gethostname()}, "
        f"{datetime.now().astimezone().isoformat(timespec='seconds')}",
        where,
    ]
    frames, here = sys._current_frames(), threading.get_ident()
    for thread in threading.enumerate():  # the main thread first
        if thread.ident in frames and thread.ident != here:
            stack = "".join(traceback.format_stack(frames[thread.ident])).rstrip()
            lines += ["", f"thread {thread.name}:", stack]
    return "\n".join(lines) + "\n"


def read_places(folder: Path, since: datetime) -> dict[int, str]:
    """Returns where processes stand, from the files with their stacks that are not older."""
    found: dict[int, str] = {}
    for path in folder.glob("*.txt"):
        head, where = (*path.read_text().split("\n", 2), "")[:2]
        match = re.fullmatch(r"process (\d+) of .*, (\S+)", head)
        if match and datetime.fromisoformat(match[2]) >= since.replace(microsecond=0):
            found[int(match[1])] = where.rpartition(": ")[2]
    return found


def _read_until(folder: Path, since: datetime, seconds: float) -> dict[int, str]:
    """Returns where processes stand; waits for their files, for so many seconds at most."""
    found: dict[int, str] = {}

    def has_all() -> bool:
        found.update(read_places(folder, since))
        return len(found) == distributed.num_processes()

    _until(has_all, seconds)
    return found


def _describe_silent(process: int, seconds: float) -> str:
    return f"process {process} says nothing for {seconds:.0f} s"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits until a condition holds, for so many seconds at most."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


def _within(seconds: float, action: Callable[[], None]) -> bool:
    """Does an action in a thread; returns True where it has ended well within the seconds."""
    done = threading.Event()

    def act() -> None:
        with suppress(Exception):  # nothing may keep the process from ending
            action()
            done.set()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()
