"""The progress of long work on standard error: training, preparing data, planning.

A terminal shows one line that is redrawn in place; a file or a pipe gets a plain line for each
report. Standard output stays free for `--json`.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self, TextIO

from jaxpretrain.display import wording

MAX_SILENCE = 5.0
"""Seconds of long work after which plain output gets a line."""
_MINUTE = 60.0
_MAX_COLUMNS = 100
_REDRAW_SECONDS = 0.2
_RATES = {
    "perf/tokens_per_second": "tok/s",
    "perf/images_per_second": "img/s",
    "perf/megabytes_per_second": "MB/s",
}
_speakers: list[object] = []
"""The bars and activities that are open, outermost first. Of activities inside one another, only
the innermost is shown."""
# The fields that a line leaves out where it is too long, in this order.
_DISPENSABLE = ("percent", "learning_rate", "mfu", "rate", "loss")


class Progress:
    """Shows the progress of work of `total` steps (None: not known), each called a `unit`.

    Threads may share it. Nothing is shown without `is_shown`, as in the other processes of a run,
    or with `only_live` where no line can be redrawn. The live line is erased at the end unless it
    `stays`. `stream` is standard error by default, `now` a clock of unix seconds.
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "step",
        *,
        stream: TextIO | None = None,
        is_shown: bool = True,
        only_live: bool = False,
        stays: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._total = total
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._stays = stays
        self._is_live = can_redraw(self._stream)
        self._is_open = is_shown and (self._is_live or not only_live)
        self._now = now
        self._lock = threading.RLock()
        self._step: int | None = None
        self._metrics: Mapping[str, float | None] = {}
        self._finish: float | None = None
        self._drawn_at = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, metrics: Mapping[str, float | None] | None = None) -> None:
        """Shows the number of finished steps.

        This is cheap enough for every step: a terminal is redrawn a few times a second, and plain
        output is written only with `metrics`, whose names are those of `metrics.jsonl`.
        """
        if not self._is_open:
            return
        with self._lock:
            now = self._now()
            self._step = step
            if metrics is not None:
                self._metrics = {}
                self.revise(metrics)
            if not self._is_live:
                if metrics is not None:
                    columns = _text_columns(self._stream)
                    self._write(self._line(now, columns - 1) + "\n")
            elif now - self._drawn_at >= _REDRAW_SECONDS:
                self._draw(now)

    def revise(self, metrics: Mapping[str, float | None]) -> None:
        """Replaces some values of the line, which the next drawing shows."""
        with self._lock:
            self._metrics = {**self._metrics, **metrics}
            eta = self._metrics.get("perf/eta_seconds")
            self._finish = None if eta is None else self._now() + eta

    @contextmanager
    def activity(self, text: str) -> Iterator[None]:
        """Shows how long the work inside takes: a live line, or a plain one every five seconds."""
        began, is_over = time.monotonic(), threading.Event()

        def show() -> None:
            wait = 1 if self._is_live else MAX_SILENCE
            while not is_over.wait(wait):
                seconds = time.monotonic() - began
                with self._lock:
                    line = f"{text}: {wording.format_seconds(seconds)} so far"
                    if is_over.is_set():
                        return
                    if _speakers[-1] is not is_over:
                        continue
                    if self._is_live:
                        self._write(f"\r{line[: _columns(self._stream) - 1]}\x1b[K")
                    else:
                        self._write(f"{line}\n")
                        wait = MAX_SILENCE if seconds < _MINUTE else _MINUTE

        thread = threading.Thread(target=show, daemon=True)
        if self._is_open:
            _speakers.append(is_over)
            thread.start()
        try:
            yield
        finally:
            with self._lock:
                is_over.set()
                if is_over in _speakers:
                    _speakers.remove(is_over)
                if self._is_live:
                    self._write("\r\x1b[K")
                    if self._step is not None:
                        self._draw(self._now())

    def message(self, text: str) -> None:
        """Prints lines of text, wrapped, above the live line where there is one."""
        with self._lock:
            text = wording.wrap(text, _text_columns(self._stream) - 1)
            self._write(("\r\x1b[K" if self._is_live else "") + text + "\n")
            if self._is_live and self._step is not None:
                self._draw(self._now())

    def close(self) -> None:
        """Ends the live line. Nothing is shown after that."""
        with self._lock:
            if self._is_live and self._step is not None:
                if self._stays:
                    self._draw(self._now())
                self._write("\n" if self._stays else "\r\x1b[K")
            self._is_open = False
            if self in _speakers:
                _speakers.remove(self)

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        if self not in _speakers:
            _speakers.append(self)
        self._write("\r" + self._line(now, _columns(self._stream) - 1) + "\x1b[K")

    def _line(self, now: float, width: int | None = None) -> str:
        assert self._step is not None
        return progress_line(
            self._step, self._total, self._metrics, self._finish, now, width, self._unit
        )

    def _write(self, text: str) -> None:
        if not self._is_open:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._is_open = False  # the terminal is gone; the work goes on


def progress_line(
    step: int,
    total: int | None,
    metrics: Mapping[str, float | None],
    finish: float | None,
    now: float,
    width: int | None = None,
    unit: str = "step",
) -> str:
    """Returns a line: `step 1,200/2,000  60.0%  loss 3.412  12.3k tok/s  eta 3m12s (14:05)`.

    `step` of `total` steps (None: not known) are finished. Values of `metrics`, by their names in
    `metrics.jsonl`, are left out where they are None. `finish`, the expected end if it is known,
    and `now` are unix seconds, `width` the columns of the terminal.
    """
    fields = {"step": f"{unit} {step:,}" + ("" if total is None else f"/{total:,}")}
    if total is not None:
        fields["percent"] = f"{100 * step / max(total, 1):.1f}%"
    if (loss := metrics.get("train/loss")) is not None:
        fields["loss"] = f"loss {wording.format_number(loss)}"
    if (learning_rate := metrics.get("train/learning_rate")) is not None:
        fields["learning_rate"] = f"lr {learning_rate:.2e}"
    for name, shown in _RATES.items():
        if (rate := metrics.get(name)) is not None:
            fields["rate"] = f"{wording.format_count(rate)} {shown}"
    if (mfu := metrics.get("perf/mfu")) is not None:
        fields["mfu"] = f"mfu {mfu:.1%}"
    if finish is not None:
        fields["eta"] = (
            f"eta {wording.format_seconds(finish - now)} ({wording.format_finish(finish, now)})"
        )
    for name in _DISPENSABLE:
        if width is None or len("  ".join(fields.values())) <= width:
            break
        fields.pop(name, None)
    return "  ".join(fields.values())[:width]


@contextmanager
def activity(text: str, *, is_shown: bool = True) -> Iterator[None]:
    """Shows on standard error how long the work inside takes, unless that is below a second."""
    with Progress(None, is_shown=is_shown) as progress, progress.activity(text):
        yield


def can_redraw(stream: TextIO) -> bool:
    """Returns true where lines can be redrawn in place: on a terminal that is not a dumb one."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def say(*lines: str) -> None:
    """Prints lines on standard error, wrapped."""
    for line in lines:
        Progress(None).message(line)


def _text_columns(stream: TextIO) -> int:
    """Returns the width of running text; COLUMNS in the environment sets it."""
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() else min(_columns(stream), _MAX_COLUMNS)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
