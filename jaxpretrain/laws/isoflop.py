"""Parabolas through points of equal FLOPs: the second approach of arXiv 2203.15556.

In the log of the size, the loss at fixed FLOPs is close to a parabola, and its minimum is the best
size. It is no parabola: its left side is steeper. The minimum is biased by that (arXiv 2603.22339),
and `bias` says by how much for the sizes at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.fits import interval
from jaxpretrain.laws.law import FLOPS, Law
from jaxpretrain.laws.points import Points, same

SAME_BUDGET = 0.1
"""The relative difference of FLOPs up to which points have the same budget."""
LEAST = 4
"""The smallest number of sizes with a parabola, and of budgets with a law over compute."""
_EXPONENTS = np.linspace(0.005, 0.6, 1191)


@dataclass(frozen=True)
class Parabola:
    """The loss at a budget by the log of the size: the minimum and the curve."""

    flops: float
    parameters: float
    """The size with the smallest loss."""
    loss: float
    curvature: float
    """Half of the second derivative of the loss in the log of the size."""
    rows: np.ndarray
    """The places of its points."""

    @property
    def tokens(self) -> float:
        """The tokens of that size at this budget."""
        return self.flops / (FLOPS * self.parameters)


@dataclass(frozen=True)
class Isoflop:
    """The best sizes of some budgets, and the power law through them."""

    parabolas: Sequence[Parabola]
    num_points: int
    exponent: float
    """The exponent of the best size in the FLOPs."""
    resampled: np.ndarray
    """The exponent for each resampling of the points within their budgets."""
    objective: float
    """The sum of squares of what the parabolas leave of the losses."""

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval of the exponent."""
        return interval(self.resampled)


def budgets(points: Points) -> list[np.ndarray]:
    """Returns the places of points of the same budget, smallest budget first."""
    order = np.argsort(points.flops, kind="stable")
    found: list[list[int]] = []
    for place in order:
        base = points.flops[found[-1][0]] if found else 0.0
        if points.flops[place] <= base * (1 + SAME_BUDGET):
            found[-1].append(place)
        else:
            found.append([place])
    return [np.array(places) for places in found]


def fit_parabolas(points: Points) -> list[Parabola]:
    """Returns the parabola of each budget that has a minimum among its points.

    Budgets with fewer than `LEAST` sizes, or with the smallest loss outside of their sizes, have
    none.
    """
    found = (_parabola(points, rows) for rows in budgets(points))
    return [one for one in found if one is not None]


def fit_isoflop(points: Points, resamplings: int, seed: int = 0) -> Isoflop | None:
    """Returns the power law through the minima; None with fewer than two budgets that have one."""
    parabolas = fit_parabolas(points)
    if len(parabolas) < 2:
        return None
    random, again = np.random.default_rng(seed), []
    for _ in range(resamplings):
        drawn = [random.choice(one.rows, len(one.rows)) for one in parabolas]
        ones = [_parabola(points, rows) for rows in drawn]
        known = [one for one in ones if one is not None]
        if len({one.flops for one in known}) > 1:
            again.append(power([o.flops for o in known], [o.parameters for o in known])[1])
    exponent = power([o.flops for o in parabolas], [o.parameters for o in parabolas])[1]
    rest = sum(float(np.sum(_rest(points, one) ** 2)) for one in parabolas)
    number = sum(len(one.rows) for one in parabolas)
    return Isoflop(parabolas, number, exponent, np.array(again), rest)


def join_optima(points: Points, resamplings: int, seed: int = 0) -> Isoflop:
    """Returns the power law through points that are the best of their budgets already.

    Raises:
      InputError: there are fewer than three, or all are of one budget.
    """
    if len(points) < 3:
        raise InputError(f"--optima: {len(points)} points; a power law takes 3 or more")
    if len(np.unique(same(np.log(points.flops)))) == 1:
        raise InputError(
            f"--optima: all points have {points.flops[0]:.3g} FLOPs; take more budgets"
        )
    random, again = np.random.default_rng(seed), []
    for _ in range(resamplings):
        rows = random.integers(len(points), size=len(points))
        if len(set(points.flops[rows])) > 1:
            again.append(power(points.flops[rows], points.parameters[rows])[1])
    scale, exponent = power(points.flops, points.parameters)
    rest = np.log(points.parameters) - np.log(scale * points.flops**exponent)
    values = zip(points.flops, points.parameters, points.losses, strict=True)
    ones = [
        Parabola(float(c), float(n), float(loss), 0.0, np.array([place]))
        for place, (c, n, loss) in enumerate(values)
    ]
    return Isoflop(ones, len(points), exponent, np.array(again), float(rest @ rest))


def power(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Returns the scale and the exponent of y = scale x^exponent, by least squares of the logs.

    Pairs without a finite number, such as a budget without an optimum, are left out.
    """
    logs = np.log(np.stack([np.asarray(x, float), np.asarray(y, float)]))
    logs = logs[:, np.isfinite(logs).all(axis=0)]
    exponent, level = np.polyfit(logs[0], logs[1], 1)
    return float(np.exp(level)), float(exponent)


def bias(points: Points, law: Law, isoflop: Isoflop) -> tuple[float, float]:
    """Returns what parabolas get wrong here: the error of the exponent, the largest of a size.

    Losses that follow the law exactly, at the same sizes and lengths, get parabolas; the error is
    that to the law's own optimum. The second is relative.
    """
    exact = replace(points, losses=law.loss(points.parameters, points.tokens))
    ones = [_parabola(exact, one.rows, is_inside=False) for one in isoflop.parabolas]
    known = [one for one in ones if one is not None]
    if len(known) < 2:
        return float("nan"), float("nan")
    flops = np.array([one.flops for one in known])
    sizes = np.array([one.parameters for one in known])
    errors = sizes / law.optimal_parameters(flops) - 1
    exponent = power(flops, sizes)[1] - law.exponents["parameters"]
    return float(exponent), float(errors[np.abs(errors).argmax()])


def fit_compute(flops: np.ndarray, losses: np.ndarray) -> dict[str, float] | None:
    """Returns E, K and gamma of the loss E + K / C^gamma at the best size of each budget.

    Least squares of relative errors; E and K are linear once gamma is given. None with fewer than
    `LEAST` budgets.
    """
    if len(flops) < LEAST:
        return None
    scale, best = float(np.median(flops)), (np.inf, 0.0, 0.0, 0.0)
    for gamma in _EXPONENTS:
        terms = np.stack([np.ones(len(flops)), (flops / scale) ** -gamma], axis=1)
        terms /= losses[:, None]
        (level, size), *_ = np.linalg.lstsq(terms, np.ones(len(flops)), rcond=None)
        rest = float(np.sum((terms @ [level, size] - 1) ** 2))
        if level >= 0 and size >= 0 and rest < best[0]:
            best = (rest, level, size * scale**gamma, gamma)
    rest, level, size, gamma = best
    if not np.isfinite(rest):
        return None
    return {"E": float(level), "K": float(size), "gamma": float(gamma), "objective": rest}


def _parabola(points: Points, rows: np.ndarray, *, is_inside: bool = True) -> Parabola | None:
    """Returns the parabola of a budget; None with few sizes, or without a minimum between them."""
    sizes, losses = points.logs[0][rows], points.losses[rows]
    if len(np.unique(same(sizes))) < LEAST:
        return None
    middle = sizes.mean()
    curvature, slope, level = np.polyfit(sizes - middle, losses, 2)
    if curvature <= 0:
        return None
    best = middle - slope / (2 * curvature)
    if is_inside and not sizes.min() < best < sizes.max():
        return None
    flops = float(np.exp(np.log(points.flops[rows]).mean()))
    loss = float(level - slope**2 / (4 * curvature))
    return Parabola(flops, float(np.exp(best)), loss, float(curvature), rows)


def _rest(points: Points, one: Parabola) -> np.ndarray:
    away = points.logs[0][one.rows] - np.log(one.parameters)
    return points.losses[one.rows] - one.loss - one.curvature * away**2
