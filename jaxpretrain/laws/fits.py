"""Laws fitted to points, with intervals by resampling and the weight of single points."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from jaxpretrain.laws.huber import minimize_huber
from jaxpretrain.laws.law import NAMES, Law
from jaxpretrain.laws.points import Points, undetermined

Method = Literal["huber", "variable_projection"]
GRID = np.linspace(0.1, 1.1, 6)
"""The exponents from which fits start: all pairs of them."""
BOUNDS = (0.01, 3.0)
"""The smallest and the largest exponent of a fit by variable projection."""
LEVEL = 0.95
"""The part of the resamplings inside an interval."""
MOST_INFLUENTIAL = 5
"""The number of points without which a law is fitted once more."""
_LARGEST_LOG = 300.0  # points that determine no law may send its coefficients further than floats
_SMALLEST = 1e-4  # part of the loss with which a term begins whose best part would be none


@dataclass(frozen=True)
class Fit:
    """A law with what is known about it."""

    method: Method
    law: Law
    objective: float
    """The sum of the Huber losses of the log, or of the squares of relative errors."""
    resampled: Law
    """The law of each resampling of the points; its coefficients are arrays."""

    def interval(self, quantity: Callable[[Law], object]) -> tuple[float, float]:
        """Returns the ends of the interval of a number that follows from a law."""
        return interval(np.asarray(quantity(self.resampled)))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the ends of the middle `LEVEL` of some values; NaN without any."""
    if not len(values := values[np.isfinite(values)]):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval_of_run(
    value: float, resampled: np.ndarray, residuals: np.ndarray, number: int = len(NAMES)
) -> tuple[float, float]:
    """Returns the ends of the interval of a new run, about what is expected of it.

    Each resampled value gets the residual of a point that is drawn for it. Residuals are smaller
    than the noise, because the coefficients follow them, so all deviations grow by the square root
    of n / (n - number).

    Args:
      value: the expected value, such as the log of a loss.
      resampled: that value by the law of each resampling.
      residuals: the measured values of the n points minus those of the law.
      number: the number of coefficients of the law.
    """
    drawn = np.random.default_rng(0).choice(residuals, len(resampled))
    wider = np.sqrt(len(residuals) / (len(residuals) - number))
    return interval(value + wider * (resampled - value + drawn))


def resamplings(number: int, points: Points, seed: int = 0) -> np.ndarray:
    """Returns how often each point is drawn in resamplings of as many points [number, n].

    Only those from which a law can be fitted are taken.

    Raises:
      InputError: all the points together determine no law.
    """
    points.require_law()
    random, size, kept = np.random.default_rng(seed), len(points), []
    while len(kept) < number:
        counts = random.multinomial(size, np.full(size, 1 / size))
        if not undetermined(points.logs[:2, counts > 0]):
            kept.append(counts)
    return np.array(kept).reshape(number, size)


def fit_huber(points: Points, counts: np.ndarray) -> Fit:
    """Returns the law with the smallest Huber loss of the log, from a grid of starts.

    Each resampling starts from that law. The objective is that of arXiv 2203.15556, delta 1e-3,
    summed over the points.

    Args:
      points: the points.
      counts: how often each of them counts in each resampling.
    """
    logs = points.logs
    starts = np.array([_start(points, a, b) for a in GRID for b in GRID])
    found, values = minimize_huber(starts, logs, np.ones(len(points)))
    best = found[values.argmin()]
    again, _ = minimize_huber(np.tile(best, (len(counts), 1)), logs, counts)
    return Fit("huber", _law(best), float(values.min()), _law(again))


def fit_projected(points: Points, counts: np.ndarray) -> Fit:
    """Returns the law with the smallest squares of relative errors, by variable projection.

    A, B and E are linear once the exponents are given, and none is negative, so only two dimensions
    are searched (arXiv 2603.22339).
    """
    ones = np.ones(len(points))
    grid = np.array([[a, b] for a in GRID for b in GRID])
    values = [_project(points, start, ones)[1] for start in grid]
    best = min(
        (_search(points, grid[place], ones) for place in np.argsort(values)[:3]),
        key=lambda found: found[1],
    )
    again = [_search(points, best[0][3:], row)[0] for row in counts]
    columns: Any = np.array(again).reshape(len(counts), 5).T
    return Fit("variable_projection", Law(*best[0]), best[1], Law(*columns))


def influence(points: Points, fit: Fit, number: int) -> tuple[np.ndarray, Law]:
    """Returns how far each point alone moves a Huber fit, and the law without some.

    The distance is the largest change of an exponent where the point is left out; the law is that
    without so many of the strongest points.
    """
    best = _theta(fit.law)
    others = 1.0 - np.eye(len(points))
    found, _ = minimize_huber(np.tile(best, (len(points), 1)), points.logs, others)
    moved = np.abs(found - best)[:, 3:].max(axis=1)
    weights = np.ones(len(points))
    weights[np.argsort(-moved)[:number]] = 0
    return moved, refit(points, fit, weights)


def refit(points: Points, fit: Fit, weights: np.ndarray) -> Law:
    """Returns the law of a Huber fit with other weights of the points [n]."""
    return _law(minimize_huber(_theta(fit.law)[None], points.logs, weights)[0][0])


def coefficients(law: Law) -> Mapping[str, float]:
    """Returns the coefficients of a law by their names."""
    return {name: getattr(law, name) for name in NAMES}


def _law(theta: np.ndarray) -> Law:
    a, b, e, alpha, beta = np.clip(theta.T, -_LARGEST_LOG, _LARGEST_LOG)
    return Law(np.exp(a), np.exp(b), np.exp(e), alpha, beta)


def _theta(law: Law) -> np.ndarray:
    return np.array([*np.log([law.A, law.B, law.E]), law.alpha, law.beta])


def _start(points: Points, alpha: float, beta: float) -> list[float]:
    """Returns log A, log B and log E that fit best with these exponents, and the exponents."""
    linear = _project(points, np.array([alpha, beta]), np.ones(len(points)))[0]
    smallest = _SMALLEST * np.median(points.losses)
    scales = [np.median(points.parameters) ** alpha, np.median(points.tokens) ** beta, 1.0]
    return [*np.log(np.maximum(linear, smallest * np.array(scales))), alpha, beta]


def optimize() -> ModuleType:
    """Returns SciPy's module of optimizers."""
    from scipy import optimize  # takes a third of a second

    return optimize


def _project(
    points: Points, exponents: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Returns the best A, B and E, none negative, the sum of squares, and its slope [2]."""
    logs = points.logs[:2]
    terms = np.stack([*np.exp(-exponents[:, None] * logs), np.ones(len(points))], axis=1)
    terms *= (np.sqrt(weights) / points.losses)[:, None]
    scale = np.sqrt((terms**2).sum(axis=0))
    linear = optimize().nnls(terms / scale, np.sqrt(weights))[0] / scale
    parts = terms * linear
    residuals = parts.sum(axis=1) - np.sqrt(weights)
    slope = -2 * (residuals * parts[:, :2].T * logs).sum(axis=1)
    return linear, float(residuals @ residuals), slope


def _search(points: Points, start: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns A, B, E, alpha and beta at the minimum near a start, and the sum of squares."""
    scale = _project(points, start, weights)[1] or 1.0

    def objective(exponents: np.ndarray) -> tuple[float, np.ndarray]:
        _, value, slope = _project(points, exponents, weights)
        return value / scale, slope / scale

    options = {"ftol": 1e-13, "gtol": 1e-9, "maxiter": 500}
    bounds = [BOUNDS, BOUNDS]
    found = optimize().minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    linear, value, _ = _project(points, found.x, weights)
    return np.array([*linear, *found.x]), value
