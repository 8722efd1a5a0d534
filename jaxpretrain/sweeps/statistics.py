"""Differences between arms and their noise: intervals, corrections, and what could be seen."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxpretrain.diagnosis.statistics import special

LEVEL = 0.95
"""The probability that an interval holds the truth."""
SIGNIFICANT = 1.0 - LEVEL
"""The corrected probability of chance below which a difference counts."""
POWER = 0.8
"""The probability that a difference is seen where it is as large as the smallest detectable one."""
MOST_SEEDS = 10_000
"""The largest number of seeds that is named; the true one may be larger."""
_DRAWS = 4000  # of the bootstrap
_CHUNK = 1 << 22  # numbers that are held at a time


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with its uncertainty."""

    mean: float
    low: float
    """The lower end of the 95 % interval; NaN where it is not known."""
    high: float
    """The upper end."""
    p: float
    """The probability of such a difference, or a larger one, by chance alone; NaN: not known."""
    n: int
    """The number of pairs."""
    smallest: float
    """The smallest true difference that is seen with probability `POWER`; NaN: not known."""
    sd: float = math.nan
    """The standard deviation of the differences of pairs."""

    def wider(self, other: "Difference") -> "Difference":
        """Returns this difference with a second source of noise: what is less certain counts."""
        return replace(
            self,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            p=max(self.p, other.p),
            smallest=max(self.smallest, other.smallest),
        )


def paired_difference(
    arm_values: Sequence[float], control_values: Sequence[float], comparisons: int = 1
) -> Difference:
    """Returns the mean difference of pairs, such as runs with the same seed, by Student's t.

    `comparisons` is the number of arms that share the correction; it counts in `smallest` alone.
    Fewer than two pairs have no interval.
    """
    differences = np.subtract(arm_values, control_values)
    n = len(differences)
    mean = float(differences.mean()) if n else math.nan
    if n < 2:
        return Difference(mean, math.nan, math.nan, math.nan, n, math.nan)
    sd = float(differences.std(ddof=1))
    error = sd / math.sqrt(n)
    half = _quantile(n, SIGNIFICANT) * error
    p = 2 * float(special().stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    smallest = smallest_detectable(sd, n, comparisons=comparisons)
    return Difference(mean, mean - half, mean + half, p, n, smallest, sd)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, step by step from the smallest (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.arange(len(order), 0, -1) * np.take(p_values, order)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def smallest_detectable(sd: float, n: int, power: float = POWER, comparisons: int = 1) -> float:
    """Returns the smallest true difference that `n` pairs show with probability `power`.

    `sd` is the standard deviation of the differences of pairs; the level is divided by the number
    of comparisons, as that of the smallest p-value is.
    """
    threshold = _quantile(n, SIGNIFICANT / comparisons)
    shift = float(special().nctdtrinc(n - 1, 1 - power, threshold))
    return shift * sd / math.sqrt(n)


def seeds_for(sd: float, difference: float, comparisons: int = 1) -> int:
    """Returns the number of seeds that show a difference with probability `POWER`."""

    def is_enough(n: int) -> bool:
        return smallest_detectable(sd, n, comparisons=comparisons) <= difference

    return 2 + bisect_left(range(2, MOST_SEEDS), True, key=is_enough)


def bootstrap_items(arm_items: np.ndarray, control_items: np.ndarray, seed: int) -> Difference:
    """Returns the mean difference of the scores [seeds, items] of a task, by its items.

    Each item's difference is averaged over the seeds, and items are drawn again and again.
    """
    differences = (np.asarray(arm_items) - control_items).mean(axis=0)
    n, mean = len(differences), float(differences.mean())
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    means = np.concatenate(
        [
            differences[random.integers(n, size=(min(rows, _DRAWS - done), n))].mean(axis=1)
            for done in range(0, _DRAWS, rows)
        ]
    )
    low, high = np.quantile(means, [SIGNIFICANT / 2, 1 - SIGNIFICANT / 2]).tolist()
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (int(tail) + 1) / (_DRAWS + 1))
    return Difference(mean, low, high, p, n, _by_normal(float(means.std())))


def independent_difference(mean: float, error: float) -> Difference:
    """Returns a difference whose standard error is known from elsewhere, by the normal curve."""
    half = float(-special().ndtri(SIGNIFICANT / 2)) * error
    p = 2 * float(special().ndtr(-abs(mean) / error)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, 1, _by_normal(error))


def _by_normal(error: float) -> float:
    return float(-special().ndtri(SIGNIFICANT / 2) + special().ndtri(POWER)) * error


def _quantile(n: int, level: float) -> float:
    return float(-special().stdtrit(n - 1, level / 2))
