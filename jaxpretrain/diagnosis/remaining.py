"""The remaining time of a run, from its clock, and the errors of earlier estimates.

The metrics hold the parts of the clock, summed over all sessions. Training is expected to go on at
its mean pace, and evaluations and saves to take the same time per step as before; compilation and
start-up do not come again. The interval follows from the variation of the pace.
"""

from dataclasses import dataclass

import numpy as np

from jaxpretrain.diagnosis.clock import PARTS
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.statistics import student_quantile

NUM_BLOCKS = 16  # number of blocks of rows whose paces are compared
CHECKED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # parts of the run after which estimates are checked


@dataclass(frozen=True)
class Estimate:
    """The time of a run in seconds."""

    step: int
    """The last reported step."""
    total_steps: int
    spent: float
    """The time of all sessions so far, without the pauses between them."""
    remaining: float
    """The expected time of the remaining steps."""
    low: float
    """The lower end of the interval that holds the remaining time with 90% probability."""
    high: float
    """The upper end of that interval."""
    finish: float
    """The expected end in unix seconds, if the run goes on without a pause."""
    num_devices: int

    @property
    def total(self) -> float:
        """The time of the whole run."""
        return self.spent + self.remaining

    @property
    def factor(self) -> float:
        """The time of the whole run in multiples of the time so far."""
        return self.total / self.spent

    @property
    def device_hours(self) -> float:
        """The device-hours of the whole run."""
        return self.total * self.num_devices / 3600


@dataclass(frozen=True)
class Check:
    """An estimate that could have been made early in a run, beside the actual time."""

    step: int
    """The step of the estimate."""
    until: int
    """The step until which the time is compared."""
    predicted: float
    """The estimated seconds from the start until then."""
    actual: float
    """The actual seconds from the start until then."""

    @property
    def error(self) -> float:
        """The relative error, (predicted - actual) / actual."""
        return self.predicted / self.actual - 1.0


@dataclass(frozen=True)
class Spent:
    """The seconds of the clock at the reported steps, float64 [reports]."""

    steps: np.ndarray
    units: np.ndarray
    """The tokens or images so far."""
    training: np.ndarray
    """The time of training, with waiting for data."""
    pauses: np.ndarray
    """The time of evaluations and saves."""
    total: np.ndarray
    """The time of all parts; compilation and start-up come only once in a session."""


def spent(history: History) -> Spent:
    """Returns the seconds of the clock at the steps that report the time of training."""
    parts = {part: history[f"time/{part}_seconds"].finite for part in PARTS}
    steps = parts["train"].steps
    units = history[f"train/{history.unit}"].finite

    def at(series: Series) -> np.ndarray:
        if not len(series):
            return np.zeros(len(steps))
        return np.interp(steps, series.steps, series.values)

    once = at(parts["compile"]) + at(parts["other"])
    training = at(parts["train"]) + at(parts["data_wait"])
    pauses = at(parts["eval"]) + at(parts["save"])
    units = at(units) if len(units) else steps.astype(np.float64)
    return Spent(steps, units, training, pauses, once + training + pauses)


def estimate(history: History, total_steps: int) -> Estimate | None:
    """Returns the time after the last reported step; None before the pace is known."""
    rows = spent(history)
    if len(rows.steps) < 2 or rows.training[-1] <= rows.training[0]:
        return None
    done = rows.units[-1] - rows.units[0]
    if done <= 0 or rows.steps[-1] <= rows.steps[-2]:
        return None
    # Each remaining step has as many units as the last one. The first row, whose step is slower,
    # and the evaluation before it do not count.
    last_units = (rows.units[-1] - rows.units[-2]) / (rows.steps[-1] - rows.steps[-2])
    left = float(last_units * (total_steps - rows.steps[-1]))
    training, pauses = (left * float((x[-1] - x[0]) / done) for x in (rows.training, rows.pauses))
    width = training * _relative_error(rows, left)
    remaining = training + pauses
    return Estimate(
        step=int(rows.steps[-1]),
        total_steps=total_steps,
        spent=float(rows.total[-1]),
        remaining=remaining,
        low=max(remaining - width, 0.0),
        high=remaining + width,
        finish=float(history.span[1]) + remaining,
        num_devices=int(history.last("run/num_devices") or 1),
    )


def checks(history: History) -> list[Check]:
    """Returns the errors of estimates of the time until now, as if made early in the run."""
    rows = spent(history)
    if len(rows.steps) < 20:
        return []
    until = int(rows.steps[-1])
    found: dict[int, Check] = {}
    for fraction in CHECKED:
        early = estimate(history.until(fraction * until), until)
        if early is not None and early.step < until:
            found[early.step] = Check(early.step, until, early.total, float(rows.total[-1]))
    return list(found.values())


def _relative_error(rows: Spent, left: float) -> float:
    """Returns half the width of a 90% interval of the remaining training time, relative to it."""
    edges = np.unique(np.linspace(0, len(rows.steps) - 1, NUM_BLOCKS + 1).astype(int))
    units, seconds = np.diff(rows.units[edges]), np.diff(rows.training[edges])
    num_blocks = len(units)
    if num_blocks < 3 or not np.all(units > 0):
        return 1.0
    paces = seconds / units
    to_come = max(left / units.mean(), 1e-9)
    deviation = paces.std(ddof=1) * np.sqrt(1 / num_blocks + 1 / to_come)
    # The drift of a pace does not average out as noise does: a difference of halves counts in full.
    half = num_blocks // 2
    drift = abs(paces[:half].mean() - paces[half:].mean()) / 2
    t = student_quantile(num_blocks - 1, 0.95)
    return float(max(t * deviation, drift) / paces.mean())
