"""What a run shows on the terminal, all of it on standard error.

On a terminal one live line is redrawn in place; in a file or a pipe each report is a plain
line. Standard output stays free for `--json`.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from jaxpretrain.diagnosis.wording import format_count, format_finish, format_number, format_seconds

_REDRAW_SECONDS = 0.2
_UNITS = {"perf/tokens_per_second": "tok/s", "perf/images_per_second": "img/s"}
# What a narrow terminal does without, first to go first; the time left goes last.
_DISPENSABLE = ("learning_rate", "mfu", "percent", "rate", "loss")


class Progress:
    """Shows how far a run is. Threads may share it.

    Args:
      total_steps: steps of the whole run.
      stream: standard error by default.
      is_primary: the other processes of a run show nothing.
      now: unix seconds.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        stream: TextIO | None = None,
        is_primary: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._total_steps = total_steps
        self._stream = sys.stderr if stream is None else stream
        self._is_open = is_primary
        self._is_live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._now = now
        self._lock = threading.RLock()
        self._step: int | None = None
        self._metrics: Mapping[str, float | None] = {}
        self._finish: float | None = None
        self._drawn_at = -math.inf

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, metrics: Mapping[str, float | None] | None = None) -> None:
        """Shows that `step` steps are done.

        Cheap enough for every step: a terminal is redrawn a few times a second, and plain
        output is written only with `metrics`, named as in `metrics.jsonl`.
        """
        with self._lock:
            now = self._now()
            self._step = step
            if metrics is not None:
                self._metrics = metrics
                eta = metrics.get("perf/eta_seconds")
                self._finish = None if eta is None else now + eta
            if not self._is_live:
                if metrics is not None:
                    self._write(self._line(now) + "\n")
            elif now - self._drawn_at >= _REDRAW_SECONDS:
                self._draw(now)

    def message(self, text: str) -> None:
        """Prints lines of text, above the live line where there is one."""
        with self._lock:
            self._write(("\r\x1b[K" if self._is_live else "") + text.rstrip("\n") + "\n")
            if self._is_live and self._step is not None:
                self._draw(self._now())

    def close(self) -> None:
        """Leaves the last state standing on a line of its own. Nothing is shown after that."""
        with self._lock:
            if self._is_live and self._step is not None:
                self._draw(self._now())
                self._write("\n")
            self._is_open = False

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        self._write("\r" + self._line(now, _columns(self._stream) - 1) + "\x1b[K")

    def _line(self, now: float, width: int | None = None) -> str:
        assert self._step is not None
        return progress_line(self._step, self._total_steps, self._metrics, self._finish, now, width)

    def _write(self, text: str) -> None:
        if not self._is_open:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._is_open = False  # the terminal is gone; the run goes on


def progress_line(
    step: int,
    total_steps: int,
    metrics: Mapping[str, float | None],
    finish: float | None,
    now: float,
    width: int | None = None,
) -> str:
    """One line, such as `step 1,200/2,000  60.0%  loss 3.412  12.3k tok/s  eta 3m12s (14:05)`.

    Args:
      step: steps done.
      total_steps: steps of the whole run.
      metrics: as in `metrics.jsonl`; what is missing or None is left out.
      finish: when the run is expected to end, unix seconds.
      now: unix seconds.
      width: columns to keep to.
    """
    fields = {"step": f"step {step:,}/{total_steps:,}"}
    fields["percent"] = f"{100 * step / max(total_steps, 1):.1f}%"
    if (loss := metrics.get("train/loss")) is not None:
        fields["loss"] = f"loss {format_number(loss)}"
    if (learning_rate := metrics.get("train/learning_rate")) is not None:
        fields["learning_rate"] = f"lr {learning_rate:.2e}"
    for name, unit in _UNITS.items():
        if (rate := metrics.get(name)) is not None:
            fields["rate"] = f"{format_count(rate)} {unit}"
    if (mfu := metrics.get("perf/mfu")) is not None:
        fields["mfu"] = f"mfu {mfu:.1%}"
    if finish is not None:
        fields["eta"] = f"eta {format_seconds(finish - now)} ({format_finish(finish, now)})"
    for name in _DISPENSABLE:
        if width is None or len("  ".join(fields.values())) <= width:
            break
        fields.pop(name, None)
    return "  ".join(fields.values())[:width]


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
