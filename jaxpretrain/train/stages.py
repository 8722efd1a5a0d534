"""The stages of a run: portions with their own batch size or sequence length.

Shorter sequences are pieces of the data's examples, so the order of the data never changes: the
sample that a step begins with depends on the batch sizes before it alone. A stage is compiled once,
when it begins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
import numpy as np

from jaxpretrain.config.durations import Pace
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.contract import Batch, TrainingData
from jaxpretrain.devices.memory import Device
from jaxpretrain.devices.startup import keep_compiled
from jaxpretrain.parallel import distributed
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import Memory, Probe, Program, make_program, require_fit
from jaxpretrain.train.recheck import Recheck, make_recheck


@dataclass(frozen=True)
class StageProgram:
    """The steps `first` + 1, ..., `last` of a run, and their program."""

    first: int
    last: int
    num_pieces: int
    """Number of sequences that each example of the data is cut into."""
    program: Program

    @cached_property
    def train_step(self) -> jax.stages.Compiled:
        """The compiled step; its recheck, where there is to be one, is compiled with it."""
        compiled = self.program.compile()
        if self.program.experiment.timeline.recheck_every:
            _ = self.recheck  # now, so that a start finds out whether it fits
        return compiled

    @cached_property
    def probe(self) -> Probe:
        """The compiled probe of the layers."""
        return self.program.compile_probe()

    @cached_property
    def recheck(self) -> Recheck:
        """The compiled comparison of two gradients of a step."""
        return make_recheck(self.program)

    @property
    def batch_size(self) -> int:
        """Number of sequences of a step."""
        return self.program.experiment.train.batch_size

    def describe(self) -> str:
        """Returns one line for start-up."""
        unit, per_example = self.program.model.units_per_example()
        return (
            f"steps {self.first + 1:,} to {self.last:,}: batch {self.batch_size:,} x "
            f"{per_example:,} = {self.batch_size * per_example:,} {unit}"
        )


@dataclass(frozen=True)
class Stages:
    """The stages of a run in order, of which the last is the run as configured."""

    stages: tuple[StageProgram, ...]

    @property
    def program(self) -> Program:
        """The program of the run as configured, that of the last stage."""
        return self.stages[-1].program

    @cached_property
    def local_samples(self) -> Callable[[int], np.ndarray]:
        """The function, to be sent to processes, from an update to its samples here, int64 [n]."""
        pace, layout = self.program.experiment.timeline.pace, self.program.layout
        sizes = {size for _, size in pace.stages} | {pace.batch_size}
        return partial(_samples_of, pace, {size: layout.local_rows(size) for size in sizes})

    def at(self, step: int) -> StageProgram:
        """Returns the stage of update number `step`, counted from 1."""
        return next((stage for stage in self.stages if step <= stage.last), self.stages[-1])

    def samples(self, step: int) -> range:
        """Returns the samples of the run that update number `step` reads."""
        return self.program.experiment.timeline.pace.samples(step)

    def read(self, data: TrainingData, step: int) -> Batch:
        """Returns this process's rows of the batch of update number `step`."""
        batch, num_pieces = data.batch(self.local_samples(step)), self.at(step).num_pieces
        return batch if num_pieces == 1 else _cut(batch, num_pieces)

    def describe(self) -> dict[str, list[str]]:
        """Returns facts about the run, by their subject; those of each stage where it has some."""
        stages = [stage.describe() for stage in self.stages] if self.stages[1:] else []
        return self.program.describe() | ({"stages": stages} if stages else {})


def make_stages(experiment: Resolved, devices: Sequence[Device]) -> Stages:
    """Makes the programs of all stages; InputError where they do not fit, or the run is shorter."""
    final = make_program(experiment, devices)
    stages, first, timeline = [], 0, experiment.timeline
    for index, last in enumerate(timeline.stage_ends):
        if last >= timeline.num_steps:
            raise InputError(
                f"train.stages.{index} ends at step {last:,}, the run at step "
                f"{timeline.num_steps:,}: lengthen train.duration"
            )
        num_pieces, own = _experiment_of(experiment, index, final.layout.num_data)
        try:
            # Its learning rates are meant for the batch of the whole run.
            program = replace(make_program(own, devices), optimizer=final.optimizer)
        except InputError as error:
            raise InputError(f"train.stages.{index}: {error}") from error
        stages.append(StageProgram(first, last, num_pieces, program))
        first = last
    return Stages((*stages, StageProgram(first, timeline.num_steps, 1, final)))


def preflight(experiment: Resolved) -> Memory:
    """Compiles the steps of the run and returns the memory of the largest; no data is read.

    Raises InputError where something that was given is wrong, or a step does not fit the devices.
    """
    with distributed.fail_together("preflight"):
        keep_compiled()
        stages = make_stages(experiment, jax.devices()).stages
        memories = [require_fit(stage.program, stage.train_step) for stage in stages]
    return max(memories, key=lambda memory: memory.total)


def _samples_of(pace: Pace, rows: Mapping[int, np.ndarray], step: int) -> np.ndarray:
    """Returns the samples of a step that lie in those rows, by the number of its samples."""
    samples = pace.samples(step)
    return samples.start + rows[len(samples)]


def _experiment_of(experiment: Resolved, index: int, num_data: int) -> tuple[int, Resolved]:
    """Returns the pieces of an example and the experiment of a stage's own program.

    One of `num_data` devices holds at most as many tokens at a time as in the rest of the run.
    """
    stage, train = experiment.train.stages[index], experiment.train
    batch_size, num_pieces, data = stage.batch_size or train.batch_size, 1, experiment.data
    if stage.seq_len is not None:
        unit, seq_len = data.units_per_example()
        if unit != "tokens" or not 2 <= stage.seq_len <= seq_len or seq_len % stage.seq_len:
            raise InputError(
                f"train.stages.{index}.seq_len={stage.seq_len}: must be 2 or more and divide the "
                f"{seq_len} {unit} of an example"
            )
        num_pieces = seq_len // stage.seq_len
        data = replace(data, seq_len=stage.seq_len)
    batch_size *= num_pieces
    microbatch_size = train.microbatch_size
    if isinstance(microbatch_size, int):
        microbatch_size = min(microbatch_size * num_pieces, max(batch_size // num_data, 1))
    train = replace(train, batch_size=batch_size, microbatch_size=microbatch_size, stages=())
    return num_pieces, replace(experiment, train=train, data=data)


def _cut(batch: Batch, num_pieces: int) -> Batch:
    """Cuts [b, t, ...] into [b * pieces, t / pieces, ...]; a value of an example is repeated."""
    return {
        name: x.reshape(len(x) * num_pieces, -1, *x.shape[2:])
        if x.ndim > 1
        else np.repeat(x, num_pieces)
        for name, x in batch.items()
    }
