"""Where the loss will end, from a law that knows the learning rate.

    L(s) = E + A * S(s)^-alpha + B * r(s)

S(s) is the area under the learning rate up to step s, r(s) the learning rate of late, both relative
to the peak: learning goes as far as the rate carries it, and a rate that falls lets the loss sink
to the bottom of its valley, which it was above by B. The shape is that of the scaling law with
learning-rate annealing (arXiv 2408.11029), whose annealing area is such a delayed rate.

E, A and B are linear and have normal priors, alpha runs over a grid. So everything is summed over
in closed form, and what the data does not tell, such as B before any decay, is as uncertain in the
forecast as it was before. The priors and the delay were chosen on three runs, one of each schedule
(scripts/make_histories.py); the exponent is near that of data in arXiv 2203.15556, 0.28.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.diagnosis.statistics import noise

GRID = 4096
"""Steps of the run at which the law is tabulated."""
FRESH = 0.3
"""The law is fitted to what comes after this part of the known steps: before, other things are
learnt, and faster."""
NUM_BINS = 24
ALPHAS = np.geomspace(0.05, 1.5, 40)
ALPHA_PRIOR = (0.32, 0.2)
"""Median, and deviation of its logarithm."""
FLOOR_PRIOR = (0.55, 0.15)
"""Mean and deviation of E, relative to the loss of late."""
RATE_PRIOR = (0.095, 0.03)
"""Those of B."""
LAW_ERROR = 0.004
"""What the law itself may be off at any one place, relative to the loss."""
DELAY = 0.12
"""How late the loss follows the learning rate, as a part of the run."""
SMALLEST_PART = 0.1
"""A forecast before this part of the run is worth little,"""
LEARNT = 2 / 3
"""and while the loss is above this part of where it began: what is learnt first goes faster,"""
WIDEST = 0.06
"""and so is one whose interval is wider than this part of it to each side,"""
MISFIT = 3.0
"""or whose law misses the bins by so many times what it may."""
QUANTILE = 1.645
LONGER = (0.5, 2.0, 4.0)
"""Multiples of the run's length of which is said what they would give."""


@dataclass(frozen=True)
class Forecast:
    """The loss at the end of a run."""

    step: int
    """The last step that was known."""
    loss: float
    low: float
    high: float
    """The true end lies between with 90% probability, where the law holds."""
    doubts: tuple[str, ...]
    """Reasons not to trust it; none: it can be trusted."""
    longer: tuple[tuple[float, float], ...]
    """(multiple of the run's length, loss), were it planned so, with its schedule stretched."""


def forecast(history: History, plan: Plan) -> Forecast | None:
    """The forecast at the end of `history`; None before there is enough of it after the warm-up."""
    first = max(plan.warmup_end, FRESH * history.step)
    loss = history.loss.between(first, plan.total_steps)
    if len(loss) < 2 * NUM_BINS:
        return None
    steps, values, errors = _bins(loss.steps, loss.values)
    level = float(values[-1])
    errors = np.hypot(errors, LAW_ERROR * level)
    law = _law(plan)
    fits = [_fit(law.rows(alpha, steps), alpha, values, errors, level) for alpha in ALPHAS]
    evidence = np.array([fit.log_evidence for fit in fits])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()

    def at_end(law: _Law) -> tuple[float, float]:
        ends = [fit.loss(law.rows(fit.alpha, np.array([law.total_steps]))[0]) for fit in fits]
        means, variances = (np.array(column) for column in zip(*ends, strict=True))
        mean = float(weights @ means)
        spread = float(weights @ (variances + np.square(means - mean)))
        return mean, np.sqrt(spread + np.square(LAW_ERROR * level))

    mean, deviation = at_end(law)
    misfit = float(weights @ np.array([fit.misfit for fit in fits]))
    width = QUANTILE * deviation
    return Forecast(
        step=history.step,
        loss=mean,
        low=mean - width,
        high=mean + width,
        doubts=_doubts(history, plan, width / mean, misfit),
        longer=tuple((times, at_end(_law(_stretched(plan, times)))[0]) for times in LONGER),
    )


def _doubts(history: History, plan: Plan, width: float, misfit: float) -> tuple[str, ...]:
    """Why a forecast may be worth little."""
    part = history.step / plan.total_steps
    loss = history.loss.values
    reasons = {
        f"only {part:.0%} of the run is known": part < SMALLEST_PART,
        "the loss is still near where it began": np.median(loss[-NUM_BINS:]) > LEARNT * loss[0],
        f"its interval is ±{width:.0%}": width > WIDEST,
        "the curve so far does not follow the law": misfit > MISFIT,
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


@dataclass(frozen=True)
class _Fit:
    """The law for one alpha: E, A and B with their covariance."""

    alpha: float
    coefficients: np.ndarray
    covariance: np.ndarray
    log_evidence: float
    misfit: float

    def loss(self, row: np.ndarray) -> tuple[float, float]:
        """Mean and variance of the loss where 1, S^-alpha and r are `row`."""
        return float(row @ self.coefficients), float(row @ self.covariance @ row)


def _fit(
    rows: np.ndarray, alpha: float, values: np.ndarray, errors: np.ndarray, level: float
) -> _Fit:
    """Bayes' rule for a linear model with normal priors and normal errors."""
    means = level * np.array([FLOOR_PRIOR[0], 0.0, RATE_PRIOR[0]])
    # A is whatever it must be: its prior is as wide as the whole loss at the first bin.
    widths = level * np.array([FLOOR_PRIOR[1], 2.0 / rows[0, 1], RATE_PRIOR[1]])
    scaled, rest = rows / errors[:, None], (values - rows @ means) / errors
    precision = scaled.T @ scaled + np.diag(widths**-2.0)
    covariance = np.linalg.inv(precision)
    shift = covariance @ scaled.T @ rest
    left = (values - rows @ (means + shift)) / errors
    exponent = left @ left + np.sum(np.square(shift / widths))
    median, deviation = ALPHA_PRIOR
    prior = -0.5 * np.square(np.log(alpha / median) / deviation)
    volume = 0.5 * np.linalg.slogdet(covariance)[1] - np.sum(np.log(widths))
    return _Fit(
        alpha=alpha,
        coefficients=means + shift,
        covariance=covariance,
        log_evidence=float(prior + volume - 0.5 * exponent),
        misfit=float(np.sqrt(np.mean(np.square(left)))),
    )


@dataclass(frozen=True)
class _Law:
    """What the learning rate of a plan enters the law as, over a grid of steps."""

    total_steps: int
    steps: np.ndarray
    area: np.ndarray
    """S, in steps at the peak."""
    rate: np.ndarray
    """r, relative to the peak."""

    def rows(self, alpha: float, steps: np.ndarray) -> np.ndarray:
        """What multiplies E, A and B at some steps: float [n, 3]."""
        area, rate = (np.interp(steps, self.steps, x) for x in (self.area, self.rate))
        return np.stack([np.ones(len(steps)), area**-alpha, rate], axis=1)


def _law(plan: Plan) -> _Law:
    steps = np.linspace(0, plan.total_steps, GRID)
    rates = plan.learning_rate(np.maximum(steps, 1))
    rates = rates / max(rates.max(), 1e-300)
    area = np.cumsum(rates) * steps[1]
    keep = np.exp(-1 / (DELAY * GRID))
    delayed = np.empty(GRID)
    late = rates[0]
    for place, rate in enumerate(rates):
        late = keep * late + (1 - keep) * rate
        delayed[place] = late
    return _Law(plan.total_steps, steps, np.maximum(area, 1e-6 * steps[1]), delayed)


def _stretched(plan: Plan, factor: float) -> Plan:
    """The plan of a run of another length: the same warm-up, and what follows it stretched."""
    end, total = plan.warmup_end, round(factor * plan.total_steps)
    scale = (plan.total_steps - end) / max(total - end, 1)

    def learning_rate(steps: np.ndarray) -> np.ndarray:
        return plan.learning_rate(np.where(steps <= end, steps, end + (steps - end) * scale))

    return Plan(total, plan.phases, learning_rate, plan.clip_norm)


def _bins(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over stretches that grow with the step: their middles, losses and standard errors."""
    edges = np.geomspace(steps[0], steps[-1] + 1, NUM_BINS + 1)
    starts = np.unique(np.searchsorted(steps, edges[:-1]))
    parts = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(steps)], strict=True)]
    sigma = noise(values)
    return (
        np.array([steps[part].mean() for part in parts]),
        np.array([values[part].mean() for part in parts]),
        np.array([sigma / np.sqrt(part.stop - part.start) for part in parts]),
    )
