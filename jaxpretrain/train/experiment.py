"""The experiment: the whole config of a run, as one typed value.

`configs/*.py` build an `Experiment`, and the command line overrides its fields. `resolved.resolve`
turns its durations into whole steps; that is what runs and what `experiment.json` keeps.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxpretrain.config.durations import Steps
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.ranges import BatchSize, Between, Positive, Seed, SequenceLength
from jaxpretrain.config.schema import Mark, marks_at
from jaxpretrain.config.serialize import Change
from jaxpretrain.data.sources import DataChoice
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.monitor.config import Monitor
from jaxpretrain.optim.optimizers import OptimizerChoice
from jaxpretrain.parallel.mesh import Mesh


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
    """Evaluates the average instead of the weights themselves, in the run and by `evaluate`,
    `sample` and `convert`."""


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
    """The effect of a bad step. stop: a loss or gradient that is not finite ends the run. skip: bad
    steps change no weights."""
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

    every: Steps = "1000 steps"
    """Interval between saves; 0: the state is saved only at the end."""
    keep_last: Annotated[int, Positive] | None = 2
    """Number of newest checkpoints that are kept; none: all are kept."""
    keep_every: Steps | None = None
    """Interval of checkpoints that are kept for good; none or 0: only the newest are kept."""


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
    mesh: Mesh = Mesh()
    """The arrangement of the devices."""
    eval: Eval = Eval()
    """The evaluations during training."""
    checkpoint: Checkpoint = Checkpoint()
    """The interval between checkpoints, and which of them are kept."""
    monitor: Monitor = Monitor()
    """Logs, metrics and traces."""
    init_from: Annotated[PathText | None, Mark.IDENTITY] = None
    """Checkpoint that the run begins with instead of fresh weights: a run's folder, one of its
    `checkpoints/<step>`, or a Hugging Face folder. A run that goes on does not read it again."""
    init_with: Annotated[Literal["weights", "optimizer", "everything"], Mark.IDENTITY] = "weights"
    """Part of `init_from` that is taken. weights: the weights alone. optimizer: also the moments of
    the optimizer and their counts, for a new schedule from step 0. everything: also the step, so
    that schedule and data go on from it."""
    seed: Annotated[Seed, Mark.IDENTITY] = 6198
    """Seed of the initial parameters, of the order of the data and of every random draw."""


def num_microbatches(train: Train, num_data: int) -> int:
    """Returns the number of microbatches that each of `num_data` data-parallel devices computes.

    Raises InputError where the batch does not divide, or the microbatch is still `auto`.
    """
    if train.microbatch_size == "auto":
        raise InputError("train.microbatch_size=auto: jaxpretrain.main and .plan choose; set it")
    share, rest = divmod(train.batch_size, num_data)
    if rest:
        raise InputError(
            f"train.batch_size={train.batch_size} does not divide over {num_data} "
            "data-parallel devices (mesh.replica x mesh.fsdp)"
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
        is_other_run = Mark.IDENTITY in marks and Mark.NO_EFFECT not in marks
        (identity if is_other_run else others).append(change)
    return identity, others
