"""The live table of a sweep on standard error: state, step, loss and remaining time of each run.

A terminal shows the table in place; a file or a pipe gets a line for each change, and one about all
at least every half minute.
"""

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from jaxpretrain.display.progress import can_redraw
from jaxpretrain.display.wording import format_number, format_seconds
from jaxpretrain.sweeps.state import State

MAX_SILENCE = 30.0
"""Seconds after which plain output gets a line about all runs."""
_REDRAW_SECONDS = 0.5
_LEAST_ROWS = 4


@dataclass
class Tail:
    """The newest values in a `metrics.jsonl` that another process writes, read piece by piece."""

    path: Path
    step: int = 0
    loss: float | None = None
    eta: float | None = None
    _offset: int = 0
    _inode: int = 0

    def read(self) -> None:
        """Reads the lines that are new; a file that was replaced is read from its beginning."""
        try:
            with self.path.open("rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._offset:
                    self._inode, self._offset = now.st_ino, 0
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            self.step = record.get("step", self.step)
            self.loss = record.get("train/loss", self.loss)
            self.eta = record.get("perf/eta_seconds", self.eta)


@dataclass
class Board:
    """The table of the runs below a folder."""

    folder: Path
    steps: Mapping[str, int]
    """Number of steps of each run, by its folder."""
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    now: Callable[[], float] = time.monotonic
    _shown: dict[str, State] = field(default_factory=dict)
    _tails: dict[str, Tail] = field(default_factory=dict)
    _num_drawn: int = 0
    _last: float = -math.inf
    _seconds_per_step: float | None = None

    def __post_init__(self) -> None:
        self._tails = {run: Tail(self.folder / run / "metrics.jsonl") for run in self.steps}
        self._is_live = can_redraw(self.stream)
        for tail in self._tails.values():
            tail.read()

    def update(self, states: Mapping[str, State]) -> None:
        """Shows the states of all runs; cheap enough to be called several times a second."""
        now = self.now()
        if not self._shown:  # what was over before is no news
            self._shown = {run: state for run, state in states.items() if state != "running"}
        changed = [run for run, state in states.items() if self._shown.get(run) != state]
        wait = _REDRAW_SECONDS if self._is_live else MAX_SILENCE
        if not changed and now - self._last < wait:
            return
        for run, state in states.items():
            if run in changed or state == "running":
                self._tails[run].read()
        self._shown = dict(states)
        if self._is_live:
            self._redraw(self._table(states))
        else:
            lines = [self._row(run, states[run]) for run in changed if states[run] != "waiting"]
            if not changed:
                lines = [
                    self._row(run, state) for run, state in states.items() if state == "running"
                ]
            self._write("".join(f"{line}\n" for line in [*lines, self._total(states)]))
        self._last = now

    def message(self, text: str) -> None:
        """Prints a line above the table."""
        if self._is_live and self._num_drawn:
            self._write(f"\x1b[{self._num_drawn}A\r\x1b[J")
            self._num_drawn = 0
        self._write(text + "\n")
        self._last = -MAX_SILENCE

    def _redraw(self, lines: Sequence[str]) -> None:
        try:
            columns, rows = os.get_terminal_size(self.stream.fileno())
        except (OSError, ValueError):
            columns, rows = 80, 24
        room = max(rows - 2, _LEAST_ROWS)
        if len(lines) > room:
            lines = [*lines[: room - 2], f"... {len(lines) - room + 1} more", lines[-1]]
        up = f"\x1b[{self._num_drawn}A" if self._num_drawn else ""
        body = "".join(f"{line[: columns - 1]}\x1b[K\n" for line in lines)
        self._write(f"{up}\r{body}\x1b[J")
        self._num_drawn = len(lines)

    def _table(self, states: Mapping[str, State]) -> list[str]:
        order: list[State] = ["running", "failed", "stopped", "done", "waiting"]
        runs = sorted(states, key=lambda run: order.index(states[run]))
        return [*(self._row(run, states[run]) for run in runs), self._total(states)]

    def _row(self, run: str, state: State) -> str:
        tail = self._tails[run]
        width = min(max(map(len, self.steps)), 48)
        parts = [f"{run:<{width}}", f"{state:<7}"]
        if state != "waiting":
            parts.append(f"step {tail.step:,}/{self.steps[run]:,}")
        if state != "waiting" and tail.loss is not None:
            parts.append(f"loss {format_number(tail.loss)}")
        if state == "running" and tail.eta is not None:
            parts.append(f"eta {format_seconds(tail.eta)}")
        return "  ".join(parts)

    def _total(self, states: Mapping[str, State]) -> str:
        counts = Counter(states.values())
        line = f"{counts['done']} of {len(states)} runs done"
        for state in ("running", "failed", "stopped"):
            line += f", {counts[state]} {state}" if counts[state] else ""
        missing = {
            run: self.steps[run] - self._tails[run].step
            for run, state in states.items()
            if state in ("running", "waiting")
        }
        paces = [
            eta / missing[run]
            for run, state in states.items()
            if state == "running" and missing[run] > 0 and (eta := self._tails[run].eta) is not None
        ]
        if paces:  # as the runs expect it: their compilation and first step do not come again
            self._seconds_per_step = sum(paces) / len(paces)
        if missing and self._seconds_per_step is not None:
            seconds = self._seconds_per_step * sum(missing.values())
            line += f"  eta {format_seconds(seconds / max(counts['running'], 1))}"
        return line

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self._is_live = False  # the terminal is gone; the runs go on
