"""Statistics of noisy curves: robust noise, trends with their errors, levels."""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

NUM_BINS = 16  # number of bins into which a long curve is averaged before its trend is computed
BLOCK = 32  # number of rows whose median is a level of the curve
SIGNIFICANT = 0.01  # probability of chance below which a trend counts: runs are judged often
SIGMA = 1.4826  # ratio of a standard deviation to the median of absolute deviations
MEDIAN_ERROR = 1.2533  # ratio of the standard error of a median to that of a mean


@dataclass(frozen=True)
class Trend:
    """A straight line through a curve."""

    change: float
    """The change from the first to the last step."""
    error: float
    """The standard error of the change."""
    freedom: int
    """The degrees of freedom of the error."""

    @property
    def falls(self) -> float:
        """The probability of such a fall, or a steeper one, if there is no trend."""
        return self.below(0.0)

    @property
    def rises(self) -> float:
        """The probability of such a rise, or a steeper one, if there is no trend."""
        return 1.0 - self.falls

    def below(self, change: float) -> float:
        """Returns the probability of such a change, or a lower one, if the true one is `change`."""
        t = (self.change - change) / max(self.error, 1e-300)
        return float(special().stdtr(self.freedom, t))


def student_quantile(freedom: int, probability: float) -> float:
    """Returns a quantile of Student's t distribution."""
    return float(special().stdtrit(freedom, probability))


def special() -> ModuleType:
    """Returns SciPy's module of special functions."""
    from scipy import special  # takes a fifth of a second: not at start-up

    return special


def trend(steps: np.ndarray, values: np.ndarray) -> Trend | None:
    """Returns the trend of finite values; None for fewer than four.

    Long series are averaged in bins first, which are less correlated than neighbours.
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
    """Returns the deviation of the noise on a curve, by differences of neighbours, past spikes."""
    if len(values) < 3:
        return 0.0
    differences = np.diff(values)
    deviation = np.median(np.abs(differences - np.median(differences)))
    return float(SIGMA * deviation / np.sqrt(2))


@dataclass(frozen=True)
class Levels:
    """The medians of blocks of rows; the last block ends with the last row."""

    rows: np.ndarray
    """The first row of each block."""
    size: int
    """The number of rows in a block."""
    medians: np.ndarray
    """The median of each block."""
    noises: np.ndarray
    """The standard deviation of single rows in each block."""

    @property
    def error(self) -> float:
        """The standard error of a median, with the noise of the last eight blocks."""
        return MEDIAN_ERROR * float(np.median(self.noises[-8:])) / np.sqrt(self.size)


def levels(values: np.ndarray, size: int = BLOCK) -> Levels:
    """Returns the levels of finite values; there are none for fewer than `size` values."""
    num_blocks = len(values) // size
    first = len(values) - num_blocks * size
    blocks = values[first:].reshape(num_blocks, size)
    if not num_blocks:
        return Levels(np.zeros(0, np.int64), size, np.zeros(0), np.zeros(0))
    # Blocks of one or two rows have no differences to compare: their noise is 0, as in `noise`.
    steps = np.diff(blocks, axis=1) if size > 2 else np.zeros((num_blocks, 1))
    deviations = np.abs(steps - np.median(steps, axis=1, keepdims=True))
    noises = SIGMA * np.median(deviations, axis=1) / np.sqrt(2)
    rows = first + size * np.arange(num_blocks)
    return Levels(rows, size, np.median(blocks, axis=1), noises)
