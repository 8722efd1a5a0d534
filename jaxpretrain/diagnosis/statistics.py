"""Robust noise, trends with their errors, and levels of a noisy curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_BINS = 16
BLOCK = 32
"""Rows whose median is a level of the curve."""


@dataclass(frozen=True)
class Trend:
    """A straight line through a curve: how much it changes from its first to its last step."""

    change: float
    error: float
    """Standard error of `change`."""
    freedom: int

    @property
    def falls(self) -> float:
        """Probability of so steep a fall, or a steeper one, were there no trend."""
        return self.below(0.0)

    @property
    def rises(self) -> float:
        """Probability of so steep a rise, or a steeper one, were there no trend."""
        return 1.0 - self.falls

    def below(self, change: float) -> float:
        """Probability of so low a value, or a lower one, were the true one `change`."""
        from scipy import special  # takes a fifth of a second: not at start-up

        t = (self.change - change) / max(self.error, 1e-300)
        return float(special.stdtr(self.freedom, t))


def trend(steps: np.ndarray, values: np.ndarray) -> Trend | None:
    """The trend of finite values; None for fewer than four.

    Long series are averaged in bins first: neighbours may be correlated, bins are less so.
    """
    if len(steps) < 4:
        return None
    x, y = steps.astype(np.float64), values
    if len(x) > 2 * NUM_BINS:
        x, y = (np.array([part.mean() for part in np.array_split(a, NUM_BINS)]) for a in (x, y))
    spread = np.sum(np.square(x - x.mean()))
    if spread == 0.0:
        return None
    slope = np.sum((x - x.mean()) * (y - y.mean())) / spread
    rest = y - y.mean() - slope * (x - x.mean())
    error = np.sqrt(np.sum(np.square(rest)) / (len(x) - 2) / spread)
    span = float(steps[-1] - steps[0])
    return Trend(float(slope) * span, float(error) * span, len(x) - 2)


def noise(values: np.ndarray) -> float:
    """Standard deviation of the noise on a curve, from its differences; no spike disturbs it."""
    if len(values) < 3:
        return 0.0
    differences = np.diff(values)
    deviation = np.median(np.abs(differences - np.median(differences)))
    return float(1.4826 * deviation / np.sqrt(2))


@dataclass(frozen=True)
class Levels:
    """Medians of blocks of rows, the last of which ends with the last row."""

    rows: np.ndarray
    """First row of each block."""
    size: int
    """Rows of a block."""
    medians: np.ndarray
    noises: np.ndarray
    """Of single rows, per block."""

    @property
    def error(self) -> float:
        """Standard error of a median, with the noise of late."""
        return 1.2533 * float(np.median(self.noises[-8:])) / np.sqrt(self.size)


def levels(values: np.ndarray, size: int = BLOCK) -> Levels:
    """The levels of finite values; none where there are fewer than `size`."""
    num_blocks = len(values) // size
    first = len(values) - num_blocks * size
    blocks = values[first:].reshape(num_blocks, size)
    if not num_blocks:
        return Levels(np.zeros(0, np.int64), size, np.zeros(0), np.zeros(0))
    # Of one row or two there are no differences to compare: their noise is 0, as in `noise`.
    steps = np.diff(blocks, axis=1) if size > 2 else np.zeros((num_blocks, 1))
    deviations = np.abs(steps - np.median(steps, axis=1, keepdims=True))
    noises = 1.4826 * np.median(deviations, axis=1) / np.sqrt(2)
    rows = first + size * np.arange(num_blocks)
    return Levels(rows, size, np.median(blocks, axis=1), noises)
