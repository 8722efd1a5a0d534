"""The comparison of a run's processes, which finds one that the others wait for.

All devices work in step, so a slow host makes every step slow in all processes. What differs is the
time that a process spends on its own, reading data and handing steps to its devices, while the
others already wait for theirs. Each process publishes that time now and then, and the first one
reads what is published. No process waits for another.
"""

import time
from collections.abc import Callable

import numpy as np

from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.parallel import distributed

SECONDS_APART = 10.0
"""The fewest seconds between two comparisons; one takes milliseconds."""


class Hosts:
    """Compares the processes of a run, each by its own clock."""

    def __init__(self, clock: Clock, now: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now = now
        self._last: tuple[int, float, float, float] | None = None

    def compare(self, step: int) -> dict[str, float]:
        """Returns `perf/slowest_host` and `perf/host_spread`, or nothing between two comparisons.

        The spread is the time that the slowest process spends on its own beyond the usual time,
        relative to a step. A single process is never compared.
        """
        if not distributed.has_others():
            return {}
        here = step, self._now(), self._clock.train_seconds(), self._clock.waited
        if self._last is None:
            self._last = here
        steps, apart, training, waited = (b - a for a, b in zip(self._last, here, strict=True))
        if apart < SECONDS_APART or not steps or not training:
            return {}
        self._last = here
        distributed.publish("own_seconds", f"{(training - waited) / steps:.6f}")
        if not distributed.is_primary():
            return {}
        own = {host: float(text) for host, text in distributed.published("own_seconds").items()}
        return spread(own, training / steps)


def spread(own: dict[int, float], step_seconds: float) -> dict[str, float]:
    """Returns the metrics, from the seconds of a step that each process spends on its own."""
    slowest = max(own, key=lambda host: own[host])
    others = [seconds for host, seconds in own.items() if host != slowest]
    if not others:
        return {}
    excess = own[slowest] - float(np.median(others))
    return {"perf/slowest_host": float(slowest), "perf/host_spread": excess / step_seconds}
