"""Where a run's time goes, and how much is left.

The clock is honest: every second since the start belongs to exactly one part, so the parts add
up to the wall time, and they are saved with each checkpoint, so that they cover all restarts.
JAX dispatches asynchronously: let the device finish before a part ends, or its work is counted
in the next part that waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["compile", "train", "eval", "save", "data_wait", "other"]
PARTS: tuple[Part, ...] = get_args(Part)


class Clock:
    """Seconds of a run by part. Time that no `measure` claims, such as start-up, is `other`.

    Belongs to one thread. `now` gives seconds and never runs backwards.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        self._counts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        self._stack: list[Part] = ["other"]
        self._charged = now()
        self.waited = 0.0
        """Seconds of `train` in which this session waited for its devices."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for the devices, which is training too."""
        started = self._now()
        try:
            yield
        finally:
            self.waited += self._now() - started

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Counts the time inside for `part`; a `measure` inside pauses the one around it."""
        self._charge()
        self._stack.append(part)
        try:
            yield
            self._counts[part] += 1
        finally:
            self._charge()
            self._stack.pop()

    def seconds(self) -> dict[Part, float]:
        """Seconds so far by part; their sum is the wall time, earlier sessions included."""
        self._charge()
        return dict(self._seconds)

    def train_seconds(self) -> float:
        """Seconds of training proper. Waiting for data slows training, so it is part of it."""
        self._charge()
        return self._seconds["train"] + self._seconds["data_wait"]

    def mean(self, part: Part) -> float:
        """Mean seconds of one finished `measure(part)`; 0 before the first."""
        return self._seconds[part] / self._counts[part] if self._counts[part] else 0.0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps: seconds under the part's name, counts under `num_<part>`."""
        counts = {f"num_{part}": float(count) for part, count in self._counts.items()}
        return {**self.seconds(), **counts}

    def restore(self, state: Mapping[str, float]) -> None:
        """Adds the time of earlier sessions, from the `state()` in a checkpoint."""
        for part in PARTS:
            self._seconds[part] += state.get(part, 0.0)
            self._counts[part] += int(state.get(f"num_{part}", 0))

    def _charge(self) -> None:
        now = self._now()
        self._seconds[self._stack[-1]] += now - self._charged
        self._charged = now


class Rate:
    """Speed of training over the last `window` seconds of train time, and what it predicts.

    Compiling, evals and saves do not slow the rate. Create it after `clock.restore`, then
    `tick` once before the first step and whenever metrics are reported.
    """

    def __init__(self, clock: Clock, window: float = 60.0) -> None:
        self._clock = clock
        self._window = window
        self._earlier_seconds = clock.train_seconds()
        self._earlier_units = 0.0
        self._ticks: deque[tuple[float, float]] = deque()  # units, train seconds

    def tick(self, units: float) -> None:
        """Notes that `units` tokens or images of the run are done."""
        seconds = self._clock.train_seconds()
        if not self._ticks:
            self._earlier_units = units
        self._ticks.append((units, seconds))
        while len(self._ticks) > 2 and seconds - self._ticks[1][1] >= self._window:
            self._ticks.popleft()

    def units_per_second(self) -> float | None:
        """Tokens or images per second; None before the second tick."""
        if not self._ticks:
            return None
        units, seconds = (b - a for a, b in zip(self._ticks[0], self._ticks[-1], strict=True))
        return units / seconds if seconds > 0 else None

    def eta(
        self, units: float, total_units: float, *, num_evals: int = 0, num_saves: int = 0
    ) -> float | None:
        """Expected seconds to the end of the run; None while nothing is known.

        Right after a resume the mean rate of the earlier sessions counts.

        Args:
          units: tokens or images done.
          total_units: those of the whole run.
          num_evals: evals still to come; each is expected to take the mean of those so far.
          num_saves: saves still to come, likewise.
        """
        rate = self.units_per_second()
        if rate is None and self._earlier_seconds > 0:
            rate = self._earlier_units / self._earlier_seconds
        if not rate:
            return None
        pauses = num_evals * self._clock.mean("eval") + num_saves * self._clock.mean("save")
        return max(0.0, total_units - units) / rate + pauses
