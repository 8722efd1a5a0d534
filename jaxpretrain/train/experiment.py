"""The experiment: everything a run is, as one typed value.

`configs/*.py` build an `Experiment`, and the command line overrides its fields. `resolved.resolve`
turns its durations into whole steps; that is what runs and what `experiment.json` keeps.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jaxpretrain.config.durations import Steps
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.marks import Mark, marks_at
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.ranges import BatchSize, Between, Positive, Seed, SequenceLength
from jaxpretrain.data.sources import DataChoice
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.monitor.config import Monitor
from jaxpretrain.optim.optimizers import OptimizerChoice
from jaxpretrain.parallel.mesh import Mesh


@dataclass(frozen=True)
class Stage:
    """A portion of the run before the batch and the sequences have their full size."""

    duration: Annotated[Steps, Positive] = "1000 steps"
    """How long it lasts, at its own batch size."""
    batch_size: BatchSize | None = None
    """Examples of the data in one step; none: train.batch_size."""
    seq_len: SequenceLength | None = None
    """Tokens of a sequence: examples are cut into pieces of this length, all of which stay in the
    batch. none: data.seq_len."""


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
    """Examples (sequences, images) of one optimizer step, over all devices."""
    microbatch_size: BatchSize | Literal["auto"] | None = None
    """Examples that one data-parallel device holds at a time; the rest of its share is
    accumulated. none: all of its share at once. auto: what is fastest of what fits the devices,
    found before the run; training is the same but for rounding."""
    stages: Annotated[tuple[Stage, ...], Mark.IDENTITY] = ()
    """Batch-size and sequence-length warm-up: what the run begins with, in order. Each stage is
    compiled once, when it begins."""
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
    """What is saved and kept."""

    every: Steps = "1000 steps"
    """How often the state is saved; 0: only at the end."""
    keep_last: Annotated[int, Positive] | None = 2
    """Newest checkpoints that are kept; none: all."""
    keep_every: Steps | None = None
    """Checkpoints at multiples of this are kept for good; none or 0: no more than the newest."""


@dataclass(frozen=True)
class Experiment:
    """A training run."""

    model: Annotated[Decoder | VitMae, Mark.IDENTITY]
    """What is trained."""
    data: Annotated[DataChoice, Mark.IDENTITY]
    """What it is trained on."""
    optim: Annotated[OptimizerChoice, Mark.IDENTITY]
    """How it is trained."""
    train: Train = Train()
    """How long and in what portions."""
    mesh: Mesh = Mesh()
    """How devices are arranged."""
    eval: Eval = Eval()
    """Evaluation while training."""
    checkpoint: Checkpoint = Checkpoint()
    """What is saved and kept."""
    monitor: Monitor = Monitor()
    """Logs, metrics and traces."""
    init_from: Annotated[PathText | None, Mark.IDENTITY] = None
    """Where the weights come from instead of a fresh initialisation: a run's folder, one of its
    `checkpoints/<step>`, or a Hugging Face folder. A run that goes on reads it no more."""
    init_with: Annotated[Literal["weights", "optimizer", "everything"], Mark.IDENTITY] = "weights"
    """What is taken from there: the weights; also the optimizer's moments and their counts, for a
    new schedule from step 0; or also the step, so that schedule and data go on from it."""
    seed: Annotated[Seed, Mark.IDENTITY] = 6198
    """Seed of the initial parameters, of the data order and of every draw."""


def num_microbatches(train: Train, num_data: int) -> int:
    """Portions in which each of `num_data` data-parallel devices works through its share.

    Raises:
      InputError: the batch does not divide, or the portions are still to be chosen.
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


Change = tuple[str, Any, Any]
"""A difference of two saved experiments: the path, the value before and the value now."""


def identity_changes(changes: Iterable[Change]) -> tuple[list[Change], list[Change]]:
    """Splits changes into those that make another run and the others."""
    identity: list[Change] = []
    others: list[Change] = []
    for change in changes:
        marks = marks_at(Experiment, change[0])
        is_other_run = Mark.IDENTITY in marks and Mark.NO_EFFECT not in marks
        (identity if is_other_run else others).append(change)
    return identity, others
