"""The experiment: the whole config of a run, as one typed value.

`configs/*.py` build an `Experiment`, and the command line overrides its fields. `resolve` turns its
durations into whole steps; that is what runs and what `experiment.json` keeps.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from itertools import accumulate
from typing import Annotated, Literal, TypedDict

import numpy as np

from jaxpretrain.config.durations import (
    Pace,
    Seconds,
    Steps,
    StepsOrTime,
    resolve_durations,
    seconds_of,
    whole_steps,
)
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.paths import PathText, PlaceText, expand_paths
from jaxpretrain.config.ranges import BatchSize, Between, Positive, Seed, SequenceLength
from jaxpretrain.config.schema import Mark, marks_at
from jaxpretrain.config.serialize import Change
from jaxpretrain.data.skip import Ranges, describe, joined, parse_ranges, positions
from jaxpretrain.data.sources import DataChoice
from jaxpretrain.diagnosis.rules import NAMES
from jaxpretrain.display.wording import count_of
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.optim.optimizers import OptimizerChoice
from jaxpretrain.parallel.mesh import Mesh, describe_sizes, nearest_sizes
from jaxpretrain.track.contract import TrackerName


@dataclass(frozen=True)
class Monitor:
    """Logs, metrics and traces."""

    every: Annotated[Steps, Positive] = "10 steps"
    """The interval between logged steps; the first and the last step are logged too."""
    signals_every: Steps = "100 steps"
    """The interval between lines of signals.jsonl, with the norms, update ratios, attention logits
    and activations of each layer; 0 writes none. Training does not depend on it."""
    stop_on: tuple[Literal[NAMES], ...] = ()  # pyright: ignore[reportInvalidTypeForm]
    """The names of findings that end the run: it is saved first, and the command exits with 3."""
    stall: Seconds | None = None
    """Time without a finished step, or within one phase of a start, after which the processes write
    where they stand to WORKDIR/stacks and exit with 76: "10 minutes"; none: the larger of 5 minutes
    and 20 of the slowest steps."""
    tensorboard: bool = True
    """Writes TensorBoard event files, with CLU's metric writers."""
    trackers: tuple[TrackerName, ...] = ()
    """The trackers that the run is mirrored to while it trains, by processes beside it."""
    profile: tuple[Annotated[int, Positive], Annotated[int, Positive]] | None = None
    """The first and the last step of an XProf trace, which is written to WORKDIR/profile."""


@dataclass(frozen=True)
class Stage:
    """A portion of the run before batches and sequences have their full size."""

    duration: Annotated[Steps, Positive] = "1000 steps"
    """Length of the stage, counted with its own batch size."""
    batch_size: BatchSize | None = None
    """Number of examples in one step; none: train.batch_size."""
    seq_len: SequenceLength | None = None
    """Number of tokens of a sequence. Examples are cut into pieces of this length, and all pieces
    stay in the batch. none: data.seq_len."""


@dataclass(frozen=True)
class Skip:
    """Bad steps change no weights, and the run goes on with the next batch."""

    not_finite: bool = True
    """Skips steps whose loss or gradient is not finite; false: such a step ends the run."""
    outliers: Annotated[float, Positive] | None = None
    """Skips steps whose loss or gradient norm lies more than this many standard deviations above
    the mean of the last 128 steps (OLMo-core: 6); none: outliers are taken."""
    max_in_row: Annotated[int, Positive] = 10
    """The number of steps skipped in a row that ends the run."""


@dataclass(frozen=True)
class Ema:
    """An average of the weights over steps, kept beside them and in every checkpoint."""

    decay: Annotated[float, Between(0, 1, "()")] = 0.999
    """Weight of the average so far; each step adds 1 - decay of the new weights."""
    evaluate: bool = False
    """Takes the average for evaluations of the run, and for `evaluate`, `sample` and `convert`."""


@dataclass(frozen=True)
class Train:
    """The length of the run, its batches and what happens to the weights."""

    duration: Steps = "1000 steps"
    """Length of the run: steps, tokens, images or epochs."""
    batch_size: Annotated[BatchSize, Mark.IDENTITY] = 8
    """Number of examples (sequences, images) in one optimizer step, over all devices."""
    microbatch_size: BatchSize | Literal["auto"] | None = None
    """Number of examples that one data-parallel device computes at a time; gradients of its share
    of the batch are accumulated. none: its whole share at once. auto: the fastest number that fits
    the devices, found before the run; the result is the same, rounding aside."""
    stages: Annotated[tuple[Stage, ...], Mark.IDENTITY] = ()
    """Stages that the run begins with, in order: a warm-up of the batch size and the sequence
    length. Each stage is compiled once, when it begins."""
    ema: Ema | None = None
    """An average of the weights over steps; none: there is no average."""
    on_bad_step: Skip | Literal["stop"] = "stop"
    """stop: a loss or gradient that is not finite ends the run. skip: such steps change nothing."""
    recheck_every: Steps | None = None
    """Interval between steps whose gradient is computed twice more beside the step and compared
    bit for bit; a difference ends the run with 76 and names the devices. none or 0: never."""
    compiler_options: dict[str, bool | str] = field(default_factory=dict)
    """XLA options of the training step, by name; an unknown one is an error. On GPUs,
    xla_gpu_deterministic_ops=true gives sums a fixed order, so that runs repeat bit for bit, which
    costs speed; CPU and TPU are exact without it."""

    @property
    def skip(self) -> Skip:
        """The steps that are skipped; none where a bad step ends the run."""
        return self.on_bad_step if isinstance(self.on_bad_step, Skip) else Skip(not_finite=False)


@dataclass(frozen=True)
class Checkpoint:
    """The interval between checkpoints, and which of them are kept."""

    every: StepsOrTime = "1000 steps"
    """Interval between saves, in steps or as a time: "20 minutes"; 0: only at the end."""
    keep_last: Annotated[int, Positive] | None = 2
    """Number of newest checkpoints that are kept; none: all are kept."""
    keep_every: Steps | None = None
    """Interval of checkpoints that are kept for good; none or 0: only the newest are kept."""
    local_dir: PathText | None = None
    """Folder on the disk of each host, to which ten times as many saves go. A start goes on from
    the newest checkpoint, there or in WORKDIR, that all hosts have whole; none: WORKDIR alone."""


@dataclass(frozen=True)
class Experiment:
    """The config of a training run."""

    model: Annotated[Decoder | VitMae, Mark.IDENTITY]
    """The model to train."""
    data: Annotated[DataChoice, Mark.IDENTITY]
    """The data to train on."""
    optim: Annotated[OptimizerChoice, Mark.IDENTITY]
    """The optimizer and its learning rate."""
    train: Train = Train()
    """The length of the run, its batches and what happens to the weights."""
    mesh: Mesh | Literal["auto"] = Mesh()
    """The arrangement of the devices. auto: what the planner ranks first for them, found before the
    run; the result is the same, rounding aside."""
    eval: Eval = Eval()
    """The evaluations during training."""
    checkpoint: Checkpoint = Checkpoint()
    """The interval between checkpoints, and which of them are kept."""
    monitor: Monitor = Monitor()
    """Logs, metrics and traces."""
    init_from: Annotated[PlaceText | None, Mark.IDENTITY] = None
    """Checkpoint that the run begins with instead of fresh weights: a run's folder, one of its
    `checkpoints/<step>`, or a Hugging Face folder. A run that goes on does not read it again."""
    init_with: Annotated[Literal["weights", "optimizer", "everything"], Mark.IDENTITY] = "weights"
    """Part of `init_from` that is taken. weights: the weights alone. optimizer: also the moments of
    the optimizer and their counts, for a new schedule from step 0. everything: also the step, so
    that schedule and data go on from it."""
    seed: Annotated[Seed, Mark.IDENTITY] = 6198
    """Seed of the initial parameters, of the order of the data and of every random draw."""


def num_microbatches(train: Train, sizes: tuple[int, ...]) -> int:
    """Returns the number of microbatches that each device of a mesh of these sizes computes.

    Raises InputError where the batch does not divide, or the microbatch is still `auto`.
    """
    if train.microbatch_size == "auto":
        raise InputError("train.microbatch_size=auto: jaxpretrain.main and .plan choose; set it")
    num_data = sizes[0] * sizes[1]
    share, rest = divmod(train.batch_size, num_data)
    if rest:
        nearest = nearest_sizes(sizes, train.batch_size)
        raise InputError(
            f"train.batch_size={train.batch_size} does not divide over {num_data} "
            f"data-parallel devices (mesh.replica x mesh.fsdp); the nearest mesh that it divides "
            f"over is {describe_sizes(nearest)}, of {count_of(math.prod(nearest), 'device')}"
        )
    microbatch = train.microbatch_size or share
    if share % microbatch:
        raise InputError(
            f"train.microbatch_size={microbatch} does not divide the {share} examples of "
            f"train.batch_size={train.batch_size} that each of {num_data} devices gets"
        )
    return share // microbatch


def identity_changes(changes: Iterable[Change]) -> tuple[list[Change], list[Change]]:
    """Splits changes into those that make another run and the others."""
    identity: list[Change] = []
    others: list[Change] = []
    for change in changes:
        marks = marks_at(Experiment, change[0])
        is_other_run = Mark.IDENTITY in marks and not marks & {Mark.NO_EFFECT, Mark.MAY_CHANGE}
        (identity if is_other_run else others).append(change)
    return identity, others


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
    """The interval between saves; 0: by time, or only at the end."""
    save_seconds: int | None
    """The seconds between saves; None: they come by steps."""
    log_every: int
    """The interval between lines of the log."""
    signals_every: int
    """The interval between looks at the layers; 0: never."""
    stall: int | None
    """The seconds without progress that end the run; None: they follow from the steps."""
    recheck_every: int
    """The interval between gradients that are computed twice; 0: never."""
    keep_every: int | None
    """Checkpoints at multiples of this are kept for good; None: no more than the newest."""


@dataclass(frozen=True)
class Resolved(Experiment):
    """An experiment whose durations are whole steps, and whose paths have no `~`."""

    @cached_property
    def timeline(self) -> Timeline:
        """The durations of the run in whole steps, without those of schedules."""
        pace, seconds = pace_of(self.train), seconds_of(self.checkpoint.every)
        return Timeline(
            num_steps=whole_steps(self.train.duration),
            pace=pace,
            stage_ends=tuple(accumulate(length for length, _ in pace.stages)),
            eval_every=whole_steps(self.eval.every),
            save_every=0 if seconds else whole_steps(self.checkpoint.every),
            save_seconds=seconds,
            log_every=whole_steps(self.monitor.every),
            signals_every=whole_steps(self.monitor.signals_every),
            stall=whole_steps(self.monitor.stall or 0) or None,
            recheck_every=whole_steps(self.train.recheck_every or 0),
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
    parse_ranges(experiment.data.skip, "--config.data.skip")

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
    if experiment.checkpoint.local_dir is not None and experiment.checkpoint.every == 0:
        raise InputError(
            "checkpoint.local_dir gets nine of ten saves, and checkpoint.every=0 makes none but the"
            " last; set checkpoint.every, or --config.checkpoint.local_dir=none"
        )
    if count.cache_info().currsize:  # it was needed
        experiment = replace(experiment, data=replace(experiment.data, num_examples=count()))
    return Resolved(**{field.name: getattr(experiment, field.name) for field in fields(experiment)})


def skip_steps(experiment: Resolved, texts: Sequence[str], flag: str = "--skip_steps") -> Resolved:
    """Returns an experiment that leaves out the samples of steps such as "1200-1210" too.

    The steps are those of a run with the experiment as it is. InputError, about the flag, for no
    such steps.
    """
    given = parse_ranges(texts, flag)
    if not given:
        return experiment
    pace, skip = experiment.timeline.pace, parse_ranges(experiment.data.skip, "data.skip")
    if given[0][0] < 1 or given[-1][1] > experiment.timeline.num_steps:
        last = experiment.timeline.num_steps
        raise InputError(f"{flag}={','.join(texts)}: the run has steps 1 to {last:,}")
    added: Ranges = tuple(
        (
            int(positions(np.array(pace.samples(first).start), skip)),
            int(positions(np.array(pace.samples(last).stop - 1), skip)),
        )
        for first, last in given
    )
    ranges = tuple(describe(joined(skip, added)).split(","))
    return replace(experiment, data=replace(experiment.data, skip=ranges))


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
