"""All that is said about some points, as one document: fits, optima, doubts, a prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from jaxpretrain.config.serialize import Document, finite
from jaxpretrain.display.wording import format_number
from jaxpretrain.laws.fits import (
    MOST_INFLUENTIAL,
    Fit,
    coefficients,
    fit_huber,
    fit_projected,
    influence,
    refit,
    resamplings,
)
from jaxpretrain.laws.isoflop import (
    Isoflop,
    bias,
    fit_compute,
    fit_isoflop,
    join_optima,
)
from jaxpretrain.laws.law import FLOPS, NAMES, Law
from jaxpretrain.laws.points import LEAST, Points
from jaxpretrain.laws.tasks import TaskLaw, fit_tasks

BEYOND = 100.0
"""The FLOPs up to which optimal sizes are told, relative to the largest run."""
SHORT_PART = 0.25
"""The part of the points, those with the fewest tokens a parameter, that may be cooled badly."""
DOUBTFUL = 5.0
"""The mean distance of the shortest runs from the law of the others, in standard deviations of
theirs, from which they are doubted."""
MISSED = 0.01
"""The part of its loss by which the largest run may lie beside the law of the others."""
NOISE = 3.0
"""The distance of the largest run from the law of the others, in standard deviations of theirs,
that is no noise."""
EXPONENTS = (0.01, 2.0)
"""The exponents between which a law is believed."""
WIDE = 3.0
"""The upper end of an exponent's interval, relative to the lower one, from which it is unknown."""
MOST_BUDGETS = 12
"""The largest number of budgets that are told unless some are named."""


@dataclass(frozen=True)
class Analysis:
    """Points with all fits."""

    points: Points
    huber: Fit | None
    """The law that predicts; None where the points are optima, which determine no law."""
    projected: Fit | None
    isoflop: Isoflop | None
    tasks: dict[str, TaskLaw]

    def residuals(self) -> np.ndarray:
        """Returns the log of the measured loss over that of the law, of each point."""
        if self.huber is None:
            return np.zeros(len(self.points))
        law = self.huber.law
        return self.points.logs[2] - np.log(law.loss(self.points.parameters, self.points.tokens))


def analyse(points: Points, number: int, *, are_optima: bool = False) -> Analysis:
    """Fits all that the points determine, with so many resamplings of them.

    Raises:
      InputError: the points determine no law, or are too few.
    """
    if are_optima:
        return Analysis(points, None, None, join_optima(points, number), {})
    points.require_law()
    counts = resamplings(number, points)
    huber, projected = fit_huber(points, counts), fit_projected(points, counts)
    tasks = fit_tasks(points, counts)
    return Analysis(points, huber, projected, fit_isoflop(points, number), tasks)


def describe(found: Analysis, budgets: Sequence[float] = ()) -> Document:
    """Returns the document about an analysis: `fits`, `optimal`, `influence`, `warnings`, `points`.

    `optimal` has a row for each of the budgets, in FLOPs; without any, for powers of ten from the
    smallest run to `BEYOND` times the largest.
    """
    points, laws = found.points, [fit for fit in (found.huber, found.projected) if fit]
    fits = [_law_document(fit, len(points)) for fit in laws]
    if found.isoflop:
        fits.append(_isoflop_document(found, found.isoflop))
    document: Document = {
        "metric": points.metric,
        "num_points": len(points),
        "hash": points.hash,
        "fits": fits,
        "optimal": [],
        "influence": None,
        "tasks": {
            name: {"bits_per_byte": _law_document(law.bits, len(points)), **_sigmoid(law)}
            for name, law in found.tasks.items()
        },
        "prediction": None,
        "scored": [],
        "warnings": [*points.warnings, *_doubts(found)],
        "points": [
            {"name": name, "parameters": n, "tokens": d, "loss": loss, "residual": rest}
            for name, n, d, loss, rest in zip(
                points.names,
                points.parameters.tolist(),
                points.tokens.tolist(),
                points.losses.tolist(),
                found.residuals().tolist(),
                strict=True,
            )
        ],
    }
    if found.huber:
        wanted = budgets or _decades(points)
        document["optimal"] = [_optimum(found.huber, flops) for flops in wanted]
        document["influence"] = _influence(points, found.huber)
    return finite(document)


def _law_document(fit: Fit, number: int) -> Document:
    intervals = {name: list(fit.interval(partial(_coefficient, name))) for name in NAMES}
    exponents = _exponents(fit.law)
    for name in exponents:
        intervals[name] = list(fit.interval(lambda law, name=name: _exponents(law)[name]))
    return {
        "method": fit.method,
        **{name: float(value) for name, value in coefficients(fit.law).items()},
        "objective": fit.objective,
        "num_points": number,
        **{name: float(value) for name, value in exponents.items()},
        "intervals": intervals,
    }


def _coefficient(name: str, law: Law) -> float:
    return coefficients(law)[name]


def _exponents(law: Law) -> dict[str, float]:
    found = law.exponents
    return {"n_exponent": found["parameters"], "d_exponent": found["tokens"]}


def _isoflop_document(found: Analysis, isoflop: Isoflop) -> Document:
    ones = isoflop.parabolas
    flops, losses = (np.array([getattr(o, name) for o in ones]) for name in ("flops", "loss"))
    low, high = isoflop.interval
    wrong = bias(found.points, found.huber.law, isoflop) if found.huber else None
    return {
        "method": "isoflop",
        **dict.fromkeys(NAMES),
        "objective": isoflop.objective,
        "num_points": isoflop.num_points,
        "n_exponent": isoflop.exponent,
        "d_exponent": 1 - isoflop.exponent,
        "intervals": {"n_exponent": [low, high], "d_exponent": [1 - high, 1 - low]},
        "bias": wrong and {"n_exponent": wrong[0], "parameters": wrong[1]},
        "compute": fit_compute(flops, losses),
        "optima": [
            {
                "flops": one.flops,
                "parameters": one.parameters,
                "tokens": one.tokens,
                "loss": one.loss,
                "curvature": one.curvature,
                "rows": one.rows.tolist(),
            }
            for one in ones
        ],
    }


def _sigmoid(law: TaskLaw) -> Document:
    return {"sigmoid": {name: float(value) for name, value in vars(law.sigmoid).items()}}


def _decades(points: Points) -> list[float]:
    first = np.floor(np.log10(points.flops.min()))
    last = np.ceil(np.log10(points.flops.max() * BEYOND))
    stride = max(1, int(np.ceil((last - first + 1) / MOST_BUDGETS)))
    return [10.0**power for power in np.arange(first, last + 1, stride)]


def _optimum(fit: Fit, flops: float) -> Document:
    size = float(fit.law.optimal_parameters(flops))
    tokens = flops / (FLOPS * size)
    return {
        "flops": flops,
        "parameters": size,
        "parameters_interval": list(fit.interval(lambda law: law.optimal_parameters(flops))),
        "tokens": tokens,
        "tokens_per_parameter": tokens / size,
        "loss": float(fit.law.optimal_loss(flops)),
        "loss_interval": list(fit.interval(lambda law: law.optimal_loss(flops))),
    }


def _influence(points: Points, fit: Fit) -> Document | None:
    """Returns the strongest points, and the law without them; None where too few are left."""
    number = min(MOST_INFLUENTIAL, len(points) - LEAST)
    if number < 1:
        return None
    moved, rest = influence(points, fit, number)
    strongest = np.argsort(-moved)[:number]
    return {
        "strongest": [
            {"name": points.names[place], "moves": float(moved[place])} for place in strongest
        ],
        "without": {name: float(value) for name, value in coefficients(rest).items()},
    }


def _doubts(found: Analysis) -> list[str]:
    """Returns warnings that follow from the points themselves."""
    lines, points = [], found.points
    _, first = np.unique(points.logs, axis=1, return_index=True)
    if again := [name for place, name in enumerate(points.names) if place not in first]:
        lines.append(
            f"{len(again)} points have the numbers of others, such as {again[0]}, and count twice; "
            "leave them out unless they are different runs"
        )
    if found.huber is not None and (apart := _short_runs(points, found.huber)) is not None:
        lines.append(
            f"the {SHORT_PART:.0%} of the runs with the fewest tokens a parameter lie {apart:.2%} "
            "above the law of the others: cooled too briefly, or not converged; leave them out and "
            "compare"
        )
    if found.huber and (missed := _largest_run(points, found.huber)):
        name, apart = missed
        lines.append(
            f"the law of the other runs misses the largest one, {name}, by {-apart:+.1%}: expect "
            "more beyond it; runs that differ in shape, learning rate or data follow no common law"
        )
    if found.huber and (wide := _wide(found.huber)):
        lines.append(
            f"the points do not determine the terms of the law: 95 % of {wide}; A, B, E and the "
            "best sizes are as uncertain, and so are runs far from the points; take more sizes and "
            "lengths, further apart"
        )
    if found.isoflop and found.huber:
        exponent, size = bias(points, found.huber.law, found.isoflop)
        if np.isfinite(exponent):
            lines.append(
                f"parabolas are biased: on losses that follow the law exactly, they are off by "
                f"{format_number(exponent, 3)} in the exponent of N and by up to {abs(size):.1%} "
                "in a size"
            )
    if len(points) < 10 and found.huber:
        lines.append(f"{len(points)} points are few for 5 coefficients: intervals are rough")
    return lines


def _wide(fit: Fit) -> str:
    """Returns which exponents lie anywhere, and between what ends; "" where all are known."""
    found = []
    for name in ("alpha", "beta"):
        low, high = fit.interval(partial(_coefficient, name))
        known = EXPONENTS[0] < _coefficient(name, fit.law) < EXPONENTS[1]
        if not known or high > WIDE * low:
            ends = (format_number(end, 3) for end in (low, high))
            found.append(f"{name} lie from {' to '.join(ends)}")
    return " and of ".join(found)


def _short_runs(points: Points, fit: Fit) -> float | None:
    """Returns how far the shortest runs lie above the law of the others; None within its noise."""
    ratio = points.tokens / points.parameters
    found = _above_others(points, fit, ratio <= np.quantile(ratio, SHORT_PART))
    if found is None:
        return None
    apart, noise = found
    return apart if apart > DOUBTFUL * noise else None


def _largest_run(points: Points, fit: Fit) -> tuple[str, float] | None:
    """Returns the largest run and the log of its loss over the law of the others; None in noise."""
    place = int(points.flops.argmax())
    found = _above_others(points, fit, np.arange(len(points)) == place)
    if found is None:
        return None
    apart, noise = found
    return (points.names[place], apart) if abs(apart) > max(MISSED, NOISE * noise) else None


def _above_others(points: Points, fit: Fit, chosen: np.ndarray) -> tuple[float, float] | None:
    """Returns how far chosen points [n] lie above the law of the others, and the noise of those.

    These are the mean and the standard deviation of logs of losses over the law. None: the others
    are too few for a law.
    """
    if (~chosen).sum() <= len(NAMES):
        return None
    law = refit(points, fit, ~chosen)
    rest = points.logs[2] - np.log(law.loss(points.parameters, points.tokens))
    return float(rest[chosen].mean()), float(rest[~chosen].std())
