"""The forecast of the final loss, from a law that depends on the learning rate.

    L(s) = E + A * S(s)^-alpha + B * r(s)

S(s) is the area under the learning rate up to step s, and r(s) the learning rate with a delay, both
relative to the peak. The area is the progress of learning. A high rate keeps the loss above the
bottom of its valley, by B at the peak. The shape is that of the scaling law with learning-rate
annealing (arXiv 2408.11029), whose annealing area is such a delayed rate.

E, A and B are linear and have normal priors, and alpha runs over a grid, so the integrals have
closed forms. A parameter that the data does not determine, such as B before any decay, keeps the
uncertainty of its prior. The priors and the delay were chosen on three runs, one of each schedule
(scripts/make_histories.py); the exponent is near that of data in arXiv 2203.15556, 0.28.
"""

from dataclasses import dataclass, replace

import numpy as np

from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.statistics import noise

GRID = 4096  # number of steps of the run at which the law is tabulated
FRESH = 0.3  # first part of the known steps, which the fit leaves out: early learning is faster
NUM_BINS = 24  # number of bins into which the loss is averaged before the fit
ALPHAS = np.geomspace(0.05, 1.5, 40)  # values of alpha, over which the forecast is averaged
ALPHA_PRIOR = (0.32, 0.2)  # median of alpha and the deviation of its logarithm
FLOOR_PRIOR = (0.55, 0.15)  # mean and the deviation of E, relative to the last bin of the loss
RATE_PRIOR = (0.095, 0.03)  # mean and the deviation of B, relative to the last bin of the loss
LAW_ERROR = 0.004  # error of the law itself, relative to the loss
DELAY = 0.12  # delay with which the loss follows the learning rate, as a part of the run
SMALLEST_PART = 0.1  # part of the run before which a forecast is doubtful
LEARNT = 2 / 3  # loss relative to the first above which a forecast is doubtful: it falls fast
WIDEST = 0.06  # half width of the interval relative to the loss above which a forecast is doubtful
MISFIT = 3.0  # misfit of the law in standard errors above which a forecast is doubtful
QUANTILE = 1.645  # half width of a 90% interval in standard deviations
LONGER = (0.5, 2.0, 4.0)  # multiples of the run's length for which the loss is forecast too


@dataclass(frozen=True)
class Forecast:
    """The expected loss at the end of a run."""

    step: int
    """The last known step."""
    loss: float
    """The mean of the forecast."""
    low: float
    """The lower end of the interval that holds the final loss with 90% probability."""
    high: float
    """The upper end of that interval."""
    doubts: tuple[str, ...]
    """The reasons not to trust the forecast; a forecast without any can be trusted."""
    longer: tuple[tuple[float, float], ...]
    """(multiple of the run's length, final loss) of runs with a stretched schedule."""


def forecast(history: History, plan: TrainingPlan) -> Forecast | None:
    """Returns the forecast at the end of a history; None where it has too few reports."""
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


def _doubts(history: History, plan: TrainingPlan, width: float, misfit: float) -> tuple[str, ...]:
    """Returns the reasons not to trust a forecast."""
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
    """The law for one alpha, with the means and the covariance of E, A and B."""

    alpha: float
    coefficients: np.ndarray
    covariance: np.ndarray
    log_evidence: float
    misfit: float

    def loss(self, row: np.ndarray) -> tuple[float, float]:
        """Returns the mean and the variance of the loss where 1, S^-alpha and r are `row`."""
        return float(row @ self.coefficients), float(row @ self.covariance @ row)


def _fit(
    rows: np.ndarray, alpha: float, values: np.ndarray, errors: np.ndarray, level: float
) -> _Fit:
    """Returns the fit by Bayes' rule for a linear model with normal priors and errors."""
    means = level * np.array([FLOOR_PRIOR[0], 0.0, RATE_PRIOR[0]])
    # The prior of A is as wide as the whole loss at the first bin, and so hardly restricts it.
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
    """The terms of the law that follow from the learning rate of a plan, over a grid of steps."""

    total_steps: int
    steps: np.ndarray
    area: np.ndarray
    """The area S in steps at the peak."""
    rate: np.ndarray
    """The delayed rate r relative to the peak."""

    def rows(self, alpha: float, steps: np.ndarray) -> np.ndarray:
        """Returns the factors of E, A and B at some steps: float [n, 3]."""
        area, rate = (np.interp(steps, self.steps, x) for x in (self.area, self.rate))
        return np.stack([np.ones(len(steps)), area**-alpha, rate], axis=1)


def _law(plan: TrainingPlan) -> _Law:
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


def _stretched(plan: TrainingPlan, factor: float) -> TrainingPlan:
    """Returns the plan of a run of another length: the schedule after the warm-up is stretched."""
    end, total = plan.warmup_end, round(factor * plan.total_steps)
    scale = (plan.total_steps - end) / max(total - end, 1)

    def learning_rate(steps: np.ndarray) -> np.ndarray:
        return plan.learning_rate(np.where(steps <= end, steps, end + (steps - end) * scale))

    return replace(plan, total_steps=total, learning_rate=learning_rate)


def _bins(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean steps, mean losses and standard errors of bins that grow with the step."""
    edges = np.geomspace(steps[0], steps[-1] + 1, NUM_BINS + 1)
    starts = np.unique(np.searchsorted(steps, edges[:-1]))
    parts = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(steps)], strict=True)]
    sigma = noise(values)
    return (
        np.array([steps[part].mean() for part in parts]),
        np.array([values[part].mean() for part in parts]),
        np.array([sigma / np.sqrt(part.stop - part.start) for part in parts]),
    )
