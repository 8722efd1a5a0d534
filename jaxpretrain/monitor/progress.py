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
from datetime import datetime
from typing import TextIO

from jaxpretrain.monitor.jsonl import to_number

_REDRAW_SECONDS = 0.2
_PLAIN = 6  # powers of ten that are written without an exponent
EVAL_DIGITS = 5
"""Significant digits of results that people compare."""
_YEAR = 365 * 86_400.0
_CENTURY = 100 * _YEAR
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


def format_number(value: float | None, digits: int = 4) -> str:
    """So many significant digits, one fewer below 1, and never a long row of them.

    Such as 0.250, 3.412, 8480, 1.235e+45; integers of up to six digits stay whole.
    """
    number = to_number(value)
    if number is None or not math.isfinite(number):
        return "?" if number is None else str(number)
    if isinstance(number, int) and abs(number) < 10**_PLAIN:
        return str(number)
    decimals = digits - 1 if abs(number) >= 1 else digits - 2
    exponent = int(f"{number:.{decimals}e}".partition("e")[2])  # once rounded
    if -digits <= exponent < _PLAIN:
        return f"{number:.{max(decimals - exponent, 0)}f}"
    return f"{number:.{decimals}e}"


def format_count(count: float) -> str:
    """Three significant digits with a suffix: 950, 12.3k, 1.2M, 2T."""
    for suffix in ("", "k", "M", "B"):
        if not abs(count) >= 999.5:
            return f"{count:.3g}{suffix}"
        count /= 1000
    return f"{count:.3g}T"


def format_seconds(seconds: float) -> str:
    """The two largest units: 45s, 3m12s, 1h05m, 2d04h; years from a century on."""
    if not math.isfinite(seconds):
        return "?"
    if seconds >= _CENTURY:
        return f"{format_count(seconds / _YEAR)} years"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02d}h"
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minutes}m{second:02d}s" if minutes else f"{second}s"


def format_finish(finish: float, now: float) -> str:
    """The local time of `finish` (both unix seconds), with its date unless that is today."""
    if not finish - now < _CENTURY:  # NaN too
        return "?"
    end = datetime.fromtimestamp(finish)
    is_today = end.date() == datetime.fromtimestamp(now).date()
    return f"{end:%H:%M}" if is_today else f"{end:%Y-%m-%d %H:%M}"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
