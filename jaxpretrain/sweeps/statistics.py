"""Differences between arms and their noise: intervals, corrections, and what could be seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
        """Returns this difference with the noise of two sources: the wider end, the larger p."""
        return Difference(
            self.mean,
            min(self.low, other.low),
            max(self.high, other.high),
            max(self.p, other.p),
            self.n,
            max(self.smallest, other.smallest),
            self.sd,
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
    p = 2 * float(_special().stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    smallest = smallest_detectable(sd, n, comparisons=comparisons)
    return Difference(mean, mean - half, mean + half, p, n, smallest, sd)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, step by step from the smallest (Holm, 1979)."""
    adjusted = np.ones(len(p_values))
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted.tolist()


def smallest_detectable(sd: float, n: int, power: float = POWER, comparisons: int = 1) -> float:
    """Returns the smallest true difference that `n` pairs show with probability `power`.

    `sd` is the standard deviation of the differences of pairs; the level is divided by the number
    of comparisons, as that of the smallest p-value is.
    """
    threshold = _quantile(n, SIGNIFICANT / comparisons)
    shift = float(_special().nctdtrinc(n - 1, 1 - power, threshold))
    return shift * sd / math.sqrt(n)


def seeds_for(sd: float, difference: float, comparisons: int = 1) -> int:
    """Returns the number of seeds that show a difference with probability `POWER`."""
    low, high = 1, 2
    while smallest_detectable(sd, high, comparisons=comparisons) > difference:
        if high >= MOST_SEEDS:
            return MOST_SEEDS
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = smallest_detectable(sd, middle, comparisons=comparisons) <= difference
        low, high = (low, middle) if is_enough else (middle, high)
    return high


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


def independent_difference(mean: float, error: float, n: int) -> Difference:
    """Returns a difference whose standard error is known from elsewhere, by the normal curve."""
    half = float(-_special().ndtri(SIGNIFICANT / 2)) * error
    p = 2 * float(_special().ndtr(-abs(mean) / error)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, n, _by_normal(error))


def _by_normal(error: float) -> float:
    return float(-_special().ndtri(SIGNIFICANT / 2) + _special().ndtri(POWER)) * error


def _quantile(n: int, level: float) -> float:
    return float(-_special().stdtrit(n - 1, level / 2))


def _special() -> Any:
    from scipy import special  # takes a fifth of a second

    return special
