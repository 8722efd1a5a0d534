"""The plan of a run, by which it is judged: its length and its learning rate."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, from_dict
from jaxpretrain.diagnosis.history import History
from jaxpretrain.optim.optimizers import OptimizerChoice
from jaxpretrain.optim.schedules import Phases
from jaxpretrain.storage.run_documents import PredictionFile

TABLE = 16_384  # number of steps at which a schedule is tabulated; it is straight between them


@dataclass(frozen=True)
class TrainingPlan:
    """The length of a run and its learning rate."""

    total_steps: int
    phases: Phases
    learning_rate: Callable[[np.ndarray], np.ndarray]
    """The learning rates of update numbers, which count from 1 and may be fractions."""
    clip_norm: float | None = None
    """The gradient norm above which gradients are scaled down; None never does."""
    batch_changes: tuple[int, ...] = ()
    """The steps with which stages end, after which the batch changes by plan."""
    prediction: PredictionFile | None = None
    """The prediction that was written into the run's folder; None without one."""

    @property
    def warmup_end(self) -> int:
        """The step with which the first warm-up ends; 0 without a warm-up."""
        names = [name for name, _ in self.phases]
        if "warmup" not in names[:-1]:
            return 0
        return self.phases[names.index("warmup") + 1][1]

    def phase(self, step: int) -> str:
        """Returns the phase after `step` finished steps; "" where it is not known."""
        return next((name for name, first in reversed(self.phases) if first <= step), "")


def plan_of(
    optim: OptimizerChoice, total_steps: int, batch_size: int, stage_ends: Iterable[int] = ()
) -> TrainingPlan:
    """Returns the plan of a resolved optimizer config, in a run whose stages end with those steps.

    The schedule is tabulated once: its evaluation occupies the devices.
    """
    phases = optim.schedule.phases(total_steps)
    kinks = [step + offset for _, step in phases for offset in (-1, 0, 1)]
    grid = np.unique([1, *kinks, *np.linspace(1, total_steps, TABLE).round()])
    grid = grid[(grid >= 1) & (grid <= max(total_steps, 1))]
    rate = optim.learning_rate(total_steps, batch_size)
    rates = np.asarray(rate(grid.astype(np.float32)), np.float64) * np.ones(len(grid))
    learning_rate = partial(np.interp, xp=grid, fp=rates)
    return TrainingPlan(total_steps, phases, learning_rate, optim.clip_norm, tuple(stage_ends))


@dataclass(frozen=True)
class _Planned:
    """The part of an experiment that a plan needs; the rest may be of another version."""

    optim: OptimizerChoice


@dataclass(frozen=True)
class _PlannedStage:
    duration: int


@dataclass(frozen=True)
class _PlannedTrain:
    duration: int
    batch_size: int
    stages: tuple[_PlannedStage, ...] = ()


def plan_in(document: Document, history: History) -> TrainingPlan:
    """Returns the plan in an `experiment.json`, or a guess where it cannot be read."""
    try:
        config = document["config"]
        planned = from_dict(_Planned, {"optim": config["optim"]})
        train = from_dict(_PlannedTrain, config["train"], ignore_unknown=True)
        ends = accumulate(stage.duration for stage in train.stages)
        return plan_of(planned.optim, train.duration, train.batch_size, ends)
    except (InputError, KeyError, TypeError):
        # A guess: the run ends here, with the learning rates it had.
        rates = history["train/learning_rate"].finite
        steps, values = (rates.steps, rates.values) if len(rates) else ([0.0], [0.0])
        return TrainingPlan(history.step, [], lambda x: np.interp(x, steps, values))
