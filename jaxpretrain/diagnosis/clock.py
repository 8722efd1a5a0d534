"""The clock of a run: the time of each part, the speed, and the time that is left.

Every second since the start belongs to exactly one part, so the parts add up to the wall time. They
are saved with each checkpoint and so cover all restarts. JAX dispatches asynchronously: let the
device finish before a part ends, or its work counts in the next part that waits.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["compile", "train", "eval", "save", "data_wait", "other"]
"""The name of a part of the time."""
PARTS: tuple[Part, ...] = get_args(Part)


class Clock:
    """Counts the seconds of a run by part. Time outside of `measure`, such as start-up, is `other`.

    Only one thread may use it. `now` gives seconds and never runs backwards.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        self._counts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        self._stack: list[Part] = ["other"]
        self._charged = now()
        self.restored: dict[Part, float] = dict(self._seconds)
        """The seconds of each part in earlier sessions."""
        self.waited = 0.0
        """The seconds of training in which this session waited for its devices."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for the devices, which is a part of training."""
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
        """Returns the seconds of each part; their sum is the wall time of all sessions."""
        self._charge()
        return dict(self._seconds)

    def train_seconds(self) -> float:
        """Returns the seconds of training. Waiting for data slows training, so it counts too."""
        self._charge()
        return self._seconds["train"] + self._seconds["data_wait"]

    def mean(self, part: Part) -> float:
        """Returns the mean seconds of a finished `measure(part)`; 0 before the first."""
        return self._seconds[part] / self._counts[part] if self._counts[part] else 0.0

    def state(self) -> dict[str, float]:
        """Returns the state for a checkpoint: seconds by part, and counts under `num_<part>`."""
        counts = {f"num_{part}": float(count) for part, count in self._counts.items()}
        return {**self.seconds(), **counts}

    def restore(self, state: Mapping[str, float]) -> None:
        """Adds the time of earlier sessions, from the state in a checkpoint."""
        for part in PARTS:
            self.restored[part] += state.get(part, 0.0)
            self._seconds[part] += state.get(part, 0.0)
            self._counts[part] += int(state.get(f"num_{part}", 0))

    def _charge(self) -> None:
        now = self._now()
        self._seconds[self._stack[-1]] += now - self._charged
        self._charged = now


class Rate:
    """Measures the speed over the last `window` seconds of training, and predicts the end.

    Compilation, evaluations and saves do not slow the rate. Create it after `clock.restore`; then
    call `tick` once before the first step and whenever metrics are reported.
    """

    def __init__(self, clock: Clock, window: float = 60.0) -> None:
        self._clock = clock
        self._window = window
        self._earlier_seconds = clock.train_seconds()
        self._earlier_units = 0.0
        self._ticks: deque[tuple[float, float]] = deque()  # units, train seconds

    def tick(self, units: float) -> None:
        """Takes the number of tokens or images that the run has processed so far."""
        seconds = self._clock.train_seconds()
        if not self._ticks:
            self._earlier_units = units
        self._ticks.append((units, seconds))
        while len(self._ticks) > 2 and seconds - self._ticks[1][1] >= self._window:
            self._ticks.popleft()

    def units_per_second(self) -> float | None:
        """Returns the tokens or images per second; None before the second tick."""
        if not self._ticks:
            return None
        units, seconds = (b - a for a, b in zip(self._ticks[0], self._ticks[-1], strict=True))
        return units / seconds if seconds > 0 else None

    def eta(
        self, units: float, total_units: float, *, num_evals: int = 0, num_saves: int = 0
    ) -> float | None:
        """Returns the expected seconds to the end of the run; None while nothing is known.

        Right after a resume, the mean rate of the earlier sessions counts. Evaluations and saves
        that are still to come are expected to take the mean time of those so far.
        """
        rate = self.units_per_second()
        if rate is None and self._earlier_seconds > 0:
            rate = self._earlier_units / self._earlier_seconds
        if not rate:
            return None
        pauses = num_evals * self._clock.mean("eval") + num_saves * self._clock.mean("save")
        return max(0.0, total_units - units) / rate + pauses
