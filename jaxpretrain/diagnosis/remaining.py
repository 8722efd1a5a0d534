"""How long the rest of a run takes, from the honest clock, and how good such estimates were.

The clock's parts are in the metrics, summed over all sessions. Training goes on at its mean pace,
evaluations and saves go on costing what they have cost per step; compilation and start-up do not
recur. The interval comes from how much the pace has varied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxpretrain.diagnosis.clock import PARTS
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.statistics import student_quantile

ONCE = ("compile", "other")
"""Parts of the clock that belong to the start of a session."""
NUM_BLOCKS = 16
CHECKED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Estimate:
    """The time of a run; seconds, all devices working at once."""

    step: int
    total_steps: int
    spent: float
    """By the clock: all sessions, without the pauses between them."""
    remaining: float
    low: float
    high: float
    """Of the remaining seconds: the true number lies between with 90% probability, as far as the
    past tells."""
    finish: float
    """When the run ends, unix seconds, were it to go on at once."""
    num_devices: int

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return self.spent + self.remaining

    @property
    def factor(self) -> float:
        """The whole run in multiples of the time so far."""
        return self.total / self.spent

    @property
    def device_hours(self) -> float:
        """Device-hours of the whole run."""
        return self.total * self.num_devices / 3600


@dataclass(frozen=True)
class Check:
    """An estimate that could have been made at `step`, of the time until `until`."""

    step: int
    until: int
    predicted: float
    """Seconds from the start until then."""
    actual: float

    @property
    def error(self) -> float:
        """(predicted - actual) / actual."""
        return self.predicted / self.actual - 1.0


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock so far, in rows that were reported."""

    steps: np.ndarray
    units: np.ndarray
    """Tokens or images."""
    once: np.ndarray
    """Of parts that do not recur."""
    training: np.ndarray
    pauses: np.ndarray
    """Evaluations and saves."""

    @property
    def total(self) -> np.ndarray:
        """Of all parts."""
        return self.once + self.training + self.pauses


def spent(history: History) -> Spent:
    """The rows in which all parts of the clock are known."""
    parts = {part: history[f"time/{part}_seconds"].finite for part in PARTS}
    steps = parts["train"].steps
    units = history[f"train/{history.unit}"].finite

    def at(series: Series) -> np.ndarray:
        if not len(series):
            return np.zeros(len(steps))
        return np.interp(steps, series.steps, series.values)

    return Spent(
        steps=steps,
        units=at(units) if len(units) else steps.astype(np.float64),
        once=at(parts["compile"]) + at(parts["other"]),
        training=at(parts["train"]) + at(parts["data_wait"]),
        pauses=at(parts["eval"]) + at(parts["save"]),
    )


def estimate(history: History, total_steps: int) -> Estimate | None:
    """The remaining time after the last reported step; None before there is a pace."""
    rows = spent(history)
    if len(rows.steps) < 2 or rows.training[-1] <= rows.training[0]:
        return None
    if rows.units[-1] <= rows.units[0] or rows.steps[-1] <= rows.steps[-2]:
        return None
    step = int(rows.steps[-1])
    left = _units_left(rows, total_steps)
    per_unit = _pace(rows)
    training, pauses = left * per_unit, left * _pause_per_unit(rows)
    width = training * _relative_error(rows, left)
    remaining = training + pauses
    devices = history["run/num_devices"].finite.values
    return Estimate(
        step=step,
        total_steps=total_steps,
        spent=float(rows.total[-1]),
        remaining=remaining,
        low=max(remaining - width, 0.0),
        high=remaining + width,
        finish=float(history.span[1]) + remaining,
        num_devices=int(devices[-1]) if len(devices) else 1,
    )


def checks(history: History) -> list[Check]:
    """What estimates made early in the run would have said of the time until now."""
    rows = spent(history)
    if len(rows.steps) < 20:
        return []
    until = int(rows.steps[-1])
    found: dict[int, Check] = {}
    for fraction in CHECKED:
        early = estimate(history.until(fraction * until), until)
        if early is not None and early.step < until:
            check = Check(early.step, until, early.total, float(rows.total[-1]))
            found[early.step] = check
    return list(found.values())


def _units_left(rows: Spent, total_steps: int) -> float:
    """Those of the steps to come, each as large as the last one."""
    per_step = np.diff(rows.units[-2:]) / np.diff(rows.steps[-2:])
    return float(per_step[0] * (total_steps - rows.steps[-1]))


def _pace(rows: Spent) -> float:
    """Seconds of training per unit, with the first row, whose step warms up, as the start."""
    seconds, units = (x[-1] - x[0] for x in (rows.training, rows.units))
    return float(seconds / units)


def _pause_per_unit(rows: Spent) -> float:
    """Seconds of evaluations and saves per unit; the evaluation before the first step is none."""
    return float((rows.pauses[-1] - rows.pauses[0]) / (rows.units[-1] - rows.units[0]))


def _relative_error(rows: Spent, left: float) -> float:
    """Half the width of a 90% interval of the training time to come, relative to it."""
    edges = np.unique(np.linspace(0, len(rows.steps) - 1, NUM_BLOCKS + 1).astype(int))
    units, seconds = np.diff(rows.units[edges]), np.diff(rows.training[edges])
    num_blocks = len(units)
    if num_blocks < 3 or not np.all(units > 0):
        return 1.0
    paces = seconds / units
    to_come = max(left / units.mean(), 1e-9)
    deviation = paces.std(ddof=1) * np.sqrt(1 / num_blocks + 1 / to_come)
    # A pace that drifts is no noise that averages out: halves that differ count in full.
    half = num_blocks // 2
    drift = abs(paces[:half].mean() - paces[half:].mean()) / 2
    t = student_quantile(num_blocks - 1, 0.95)
    return float(max(t * deviation, drift) / paces.mean())
