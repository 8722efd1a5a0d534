"""The starts of a run, kept in `sessions.json` of its folder: no hour is unaccounted for."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.clock import PARTS, Clock
from jaxpretrain.diagnosis.goodput import SESSIONS, Goodput, Session, goodput, read_sessions
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.jsonl import newest_line


class Sessions:
    """The sessions of a run until now, and this one; of the first process alone."""

    def __init__(self, workdir: Path) -> None:
        """Opens the folder; the end of the last session is read from its lines and stacks.

        Call it before lines are dropped that the checkpoint does not know.
        """
        self._workdir = workdir
        self._sessions = read_sessions(workdir)
        if self._sessions:
            self._sessions[-1] = _with_end(self._sessions[-1], workdir)

    @property
    def first_start(self) -> float:
        """The unix time at which the run began."""
        return self._sessions[0].started

    def begin(self, clock: Clock, rendezvous: float = 0.0, restore: float = 0.0) -> None:
        """Takes the clock as it was restored, and the seconds of two phases before it.

        A process may begin several sessions, one after another: the time before belongs to those.
        """
        known: dict[str, float] = {part: x for part, x in clock.restored.items()}
        started = process_start()
        if self._sessions:
            before = self._sessions[-1].ended + self._sessions[-1].stalled
            started = before if started < before < time.time() else started
        self._sessions.append(Session(started, rendezvous, restore, known, started, known))
        self.note(clock)

    def note(self, clock: Clock) -> None:
        """Writes down that the session lives, with its clock."""
        now = replace(self._sessions[-1], ended=time.time(), seconds=dict(clock.seconds()))
        self._sessions[-1] = now
        document = {"sessions": [asdict(session) for session in self._sessions]}
        with suppress(OSError, InputError):  # a note is not worth the run
            write_atomically(self._workdir / SESSIONS, json.dumps(document) + "\n")

    def goodput(self) -> Goodput:
        """Returns where the time went until the last note."""
        found = goodput(self._sessions)
        assert found is not None
        return found


def process_start() -> float:
    """Returns the unix time at which this process began; now, where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))
    return time.time()


def _with_end(session: Session, workdir: Path) -> Session:
    """Returns a session with its last sign of life: its own note, a line of metrics, its stacks."""
    line = newest_line(workdir / "metrics.jsonl", "time/train_seconds")
    if line is not None and line["time"] > session.ended:
        seconds = {part: line.get(f"time/{part}_seconds", 0.0) for part in PARTS}
        session = replace(session, ended=float(line["time"]), seconds=seconds)
    with suppress(OSError, ValueError):
        head = (workdir / "stacks" / "0.txt").read_text().partition("\n")[0]
        stalled = datetime.fromisoformat(head.rpartition(", ")[2]).timestamp() - session.ended
        session = replace(session, stalled=max(stalled, 0.0))
    return session
