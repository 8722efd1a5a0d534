"""The source of each sample of a mixture: a pure function of the sample's number.

Every window of samples, counted from the beginning of a stage, holds the same whole number of
each source, evenly spread. So the samples of a source before any point are counted by arithmetic,
and starting in the middle costs what starting at 0 costs.
"""

import bisect
import math
from collections.abc import Sequence

import numpy as np


def quotas(weights: Sequence[float], window: int) -> np.ndarray:
    """Returns the samples of each source in a window, int64 [num_sources], by largest remainder.

    A quota is less than one sample from `weight / sum(weights) * window`.
    """
    exact = np.asarray(weights, np.float64) / math.fsum(weights) * window
    whole = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(whole - exact, kind="stable")
    whole[by_remainder[: window - int(whole.sum())]] += 1
    return whole


def spread(quotas: np.ndarray) -> np.ndarray:
    """Returns the source at each position of a window, int32 [sum(quotas)], evenly spread.

    The first m positions hold, of every source, its share of m to within less than one sample
    (Tijdeman, "The chairman assignment problem", 1980). So any m consecutive samples of repeated
    windows hold it to within less than two.
    """
    window, shares = int(quotas.sum()), quotas.tolist()
    present = [source for source, share in enumerate(shares) if share]
    # No source strays further than 1 - 1 / slack samples, the best that is possible.
    slack = max(2 * len(present) - 2, 1)
    counts = [0] * len(shares)
    pattern = np.empty(window, np.int32)
    for position in range(1, window + 1):
        # The lag of each source, in units of a sample / (slack * window).
        lags = {s: slack * (shares[s] * position - counts[s] * window) for s in present}
        due = [s for s in present if lags[s] >= window]
        chosen = min(due, key=lambda s: ((slack - 1) * window - lags[s]) / shares[s])
        counts[chosen] += 1
        pattern[position - 1] = chosen
    return pattern


class Blend:
    """A function from sample numbers to (source, number within the source), stage by stage.

    `stages` are (first sample, quotas), the first from sample 0. Each source is read in its own
    order 0, 1, 2, ..., over windows and stages, without a gap or a repeat.
    """

    def __init__(self, stages: Sequence[tuple[int, np.ndarray]]):
        self._stages: list[_Stage] = []
        for first, quotas in stages:
            before = self.counts(first) if self._stages else np.zeros_like(quotas)
            self._stages.append(_Stage(first, quotas, before))

    def __call__(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns source, int32 [n], and number within it, int64 [n], of samples, int64 [n]."""
        sources, numbers = np.empty(len(samples), np.int32), np.empty(len(samples), np.int64)
        for stage in self._stages:  # where a later one has begun, it overwrites those before it
            here = samples >= stage.first
            sources[here], numbers[here] = stage.locate(samples[here])
        return sources, numbers

    def find(self, source: int, number: int, num_samples: int) -> int | None:
        """Returns the sample with this number in a source; None where it is not of the first."""
        sample = bisect.bisect_right(
            range(num_samples), number, key=lambda sample: self.counts(sample + 1)[source]
        )
        return sample if sample < num_samples else None

    def proportions(self) -> list[tuple[int, list[int]]]:
        """Returns (first sample, quotas in lowest terms) of each stage, which decide everything."""
        return [(stage.first, stage.quotas.tolist()) for stage in self._stages]

    def counts(self, num_samples: int) -> np.ndarray:
        """Returns the number of the first samples that are of each source, int64 [num_sources]."""
        number = bisect.bisect_right(self._stages, num_samples, key=lambda stage: stage.first) - 1
        return self._stages[number].counts(num_samples)


class _Stage:
    """Windows of one pattern, from sample `first` on; `before` were the counts of the sources."""

    def __init__(self, first: int, quotas: np.ndarray, before: np.ndarray):
        self.first = first
        self.before = before
        self.quotas = quotas // np.gcd.reduce(quotas)  # the shortest window of these proportions
        self.pattern = spread(self.quotas)
        # For each position of a window, the number of those before it that are of its source.
        self.ranks = np.empty(len(self.pattern), np.int64)
        for source, quota in enumerate(self.quotas):
            self.ranks[self.pattern == source] = np.arange(quota)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows, positions = np.divmod(samples - self.first, len(self.pattern))
        sources = self.pattern[positions]
        earlier = self.before[sources] + windows * self.quotas[sources]
        return sources, earlier + self.ranks[positions]

    def counts(self, num_samples: int) -> np.ndarray:
        windows, rest = divmod(num_samples - self.first, len(self.pattern))
        begun = np.bincount(self.pattern[:rest], minlength=len(self.quotas))
        return self.before + windows * self.quotas + begun
