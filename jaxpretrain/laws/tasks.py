"""Scores of tasks in two steps (arXiv 2412.04403): bits per byte, then the accuracy.

The bits per byte of the right answers follow a law of size and length, as the loss does; the
accuracy is a sigmoid of them.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.fits import Fit, fit_huber, interval_of_run, optimize
from jaxpretrain.laws.points import Points

LEAST = 6
"""The smallest number of points with a sigmoid, which has 4 coefficients."""
_WIDEST = 1e4


@dataclass(frozen=True)
class Sigmoid:
    """The accuracy by bits per byte: from `low` where they are many to `high` where they are few.

    Each field is a number, or an array with one value for each resampling of the points.
    """

    low: float
    high: float
    steepness: float
    middle: float

    def accuracy(self, bits_per_byte: np.ndarray | float) -> np.ndarray:
        """Returns the accuracy, from 0 to 1."""
        reach = np.clip(self.steepness * (np.asarray(bits_per_byte) - self.middle), -500, 500)
        return np.asarray(self.low + (self.high - self.low) / (1 + np.exp(reach)))


@dataclass(frozen=True)
class TaskLaw:
    """The two steps of a task."""

    bits: Fit
    sigmoid: Sigmoid
    resampled: Sigmoid

    residuals: np.ndarray
    """The log of the bits, and the accuracy, minus those of the laws, of each point [2, n]."""

    def predict(self, parameters: float, tokens: float) -> dict[str, float]:
        """Returns `bits_per_byte` and `accuracy` of a run, each also with `_low` and `_high`."""
        bits = float(self.bits.law.loss(parameters, tokens))
        many = self.bits.resampled.loss(parameters, tokens)
        share, shares = float(self.sigmoid.accuracy(bits)), self.resampled.accuracy(many)
        low, high = np.exp(interval_of_run(np.log(bits), np.log(many), self.residuals[0])).tolist()
        number = len(vars(self.sigmoid))
        ends = np.clip(interval_of_run(share, shares, self.residuals[1], number), 0, 1).tolist()
        return {
            "bits_per_byte": bits,
            "bits_per_byte_low": low,
            "bits_per_byte_high": high,
            "accuracy": share,
            "accuracy_low": ends[0],
            "accuracy_high": ends[1],
        }


def fit_tasks(points: Points, counts: np.ndarray) -> dict[str, TaskLaw]:
    """Returns the laws of all tasks of some points, by the names of the tasks.

    Args:
      points: the points.
      counts: how often each of them counts in each resampling.

    Raises:
      InputError: a point has no bits per byte or no accuracy of a task, or there are too few.
    """
    laws = {}
    for name, (bits, shares) in points.tasks.items():
        if len(points) < LEAST:
            raise InputError(f"task {name}: {len(points)} points; two steps take {LEAST} or more")
        known = np.isfinite(bits) & (bits > 0) & (shares >= 0) & (shares <= 1)
        if not known.all():
            place = int(known.argmin())
            raise InputError(
                f"task {name}: {points.names[place]} has {bits[place]:g} bits per byte and an "
                f"accuracy of {shares[place]:g}; bits are above 0, accuracies from 0 to 1"
            )
        fit = fit_huber(replace(points, losses=bits, metric=f"bits per byte of {name}"), counts)
        first = _fit_sigmoid(bits, shares, np.ones(len(points)), None)
        again = [_fit_sigmoid(bits, shares, row, first) for row in counts]
        columns: Any = np.array(again).reshape(-1, 4).T
        expected, sigmoid = fit.law.loss(points.parameters, points.tokens), Sigmoid(*first)
        rest = np.stack([np.log(bits / expected), shares - sigmoid.accuracy(bits)])
        laws[name] = TaskLaw(fit, sigmoid, Sigmoid(*columns), rest)
    return laws


def _fit_sigmoid(
    bits: np.ndarray, shares: np.ndarray, weights: np.ndarray, start: np.ndarray | None
) -> np.ndarray:
    """Returns low, high, steepness and middle with the smallest sum of squares."""
    scale, width = np.sqrt(weights), max(float(np.ptp(bits)), 1e-3)
    # The ends of the sigmoid are accuracies, and no point lies beyond them.
    lowest = np.array([0.0, np.clip(shares.max(), 0.0, 0.99), 0.0, -_WIDEST])
    highest = np.array([np.clip(shares.min(), 0.01, 1.0), 1.0, 100 / width, _WIDEST])
    if start is None:
        start = np.array([0.9 * highest[0], 1.0, 2 / width, np.median(bits)])

    def rest(theta: np.ndarray) -> np.ndarray:
        return scale * (Sigmoid(*theta).accuracy(bits) - shares)

    inside = np.clip(start, lowest + 1e-9, highest - 1e-9)
    sizes = [0.1, 0.1, 1 / width, width]
    return optimize().least_squares(rest, inside, bounds=(lowest, highest), x_scale=sizes).x
