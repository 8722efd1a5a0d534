"""An experiment in whole numbers: what runs, and what `experiment.json` keeps."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import accumulate
from typing import TypedDict

from jaxpretrain.config.durations import Pace, resolve_durations, whole_steps
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.paths import expand_paths
from jaxpretrain.train.experiment import Experiment, Train


@dataclass(frozen=True)
class Timeline:
    """The length of a run and the intervals in it, in steps."""

    num_steps: int
    """The length of the run."""
    pace: Pace
    """The number of samples that the run has seen after each step."""
    stage_ends: tuple[int, ...]
    """The last step of each stage of `train.stages`."""
    eval_every: int
    """The interval between evaluations; 0: only before the first step and at the end."""
    save_every: int
    """The interval between saves; 0: only at the end."""
    log_every: int
    """The interval between lines of the log."""
    signals_every: int
    """The interval between looks at the layers; 0: never."""
    keep_every: int | None
    """Checkpoints at multiples of this are kept for good; None: no more than the newest."""


@dataclass(frozen=True)
class Resolved(Experiment):
    """An experiment whose durations are whole steps, and whose paths have no `~`."""

    @cached_property
    def timeline(self) -> Timeline:
        """The durations of the run in whole steps, without those of schedules."""
        pace = pace_of(self.train)
        return Timeline(
            num_steps=whole_steps(self.train.duration),
            pace=pace,
            stage_ends=tuple(accumulate(length for length, _ in pace.stages)),
            eval_every=whole_steps(self.eval.every),
            save_every=whole_steps(self.checkpoint.every),
            log_every=whole_steps(self.monitor.every),
            signals_every=whole_steps(self.monitor.signals_every),
            keep_every=whole_steps(self.checkpoint.keep_every or 0) or None,
        )


def resolve(experiment: Experiment) -> Resolved:
    """Turns durations into whole steps, once, rounded up, and expands `~` in paths.

    Durations in epochs need `data.num_examples`. Where the config does not declare it, the data is
    opened and counted, and the result declares the number. InputError: a value lies outside the
    range of its field, values do not go together, or the data cannot be counted.
    """
    validate(experiment)
    experiment = expand_paths(experiment)
    if (traced := experiment.monitor.profile) and traced[0] > traced[1]:
        raise InputError(f"--config.monitor.profile={traced}: must be a first and a last step")
    unit, per_example = experiment.data.units_per_example()

    @cache
    def count() -> int:
        return _count_examples(experiment, units)

    declared = experiment.data.num_examples
    units: _Units = {
        "tokens_per_example": per_example if unit == "tokens" else None,
        "num_examples": count if declared is None else declared,
    }
    # Stages first: they say how many steps any other duration takes.
    train = experiment.train
    stages = tuple(
        resolve_durations(
            stage,
            batch_size=stage.batch_size or train.batch_size,
            path=f"--config.train.stages.{index}",
            **units,
        )
        for index, stage in enumerate(train.stages)
    )
    train = replace(train, stages=stages)
    experiment = replace(experiment, train=train)
    experiment = resolve_durations(experiment, batch_size=pace_of(train), **units)
    if count.cache_info().currsize:  # it was needed
        experiment = replace(experiment, data=replace(experiment.data, num_examples=count()))
    return Resolved(**{field.name: getattr(experiment, field.name) for field in fields(experiment)})


def pace_of(train: Train) -> Pace:
    """Returns the pace of a run whose stages have whole lengths."""
    return Pace(
        train.batch_size,
        tuple((whole_steps(s.duration), s.batch_size or train.batch_size) for s in train.stages),
    )


class _Units(TypedDict):
    """What a duration is counted in; see `resolve_durations`."""

    tokens_per_example: int | None
    num_examples: int | Callable[[], int] | None


def _count_examples(experiment: Experiment, units: _Units) -> int:
    """Returns the number of examples of an epoch of the data, which is opened for that."""
    data = experiment.data
    if data.changes_over_time:  # and so durations inside it cannot be counted in epochs
        if not all(isinstance(stage.duration, int) for stage in experiment.train.stages):
            raise InputError("train.stages and data.stages together need data.num_examples")
        known: _Units = {**units, "num_examples": None}
        pace = pace_of(experiment.train)
        data = resolve_durations(data, batch_size=pace, path="--config.data", **known)
    limits = experiment.model.build(data.example_spec(), platform="cpu").input_limits()
    try:
        return data.unhashed().open(seed=experiment.seed, limits=limits).num_examples
    except InputError as error:
        raise InputError(
            "the length of an epoch is not known: set data.num_examples, or the data that is to be"
            f" counted ({error})"
        ) from error
