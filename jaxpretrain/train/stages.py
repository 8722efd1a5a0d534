"""The stages of a run: portions with their own batch size or sequence length.

Shorter sequences are pieces of the data's examples, so the order of the data never changes: the
sample that a step begins with depends on the batch sizes before it alone. A stage is compiled once,
when it begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxpretrain.config.durations import whole_steps
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.contract import TrainingData
from jaxpretrain.train.experiment import Experiment, pace
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.signals import Probe, compile_probe


@dataclass(frozen=True)
class Stage:
    """The steps `first` + 1, ..., `last` of a run, and their program."""

    first: int
    last: int
    first_sample: int
    """The first sample of the run that is read in this stage."""
    num_pieces: int
    """Sequences that each example of the data is cut into."""
    program: Program

    @cached_property
    def train_step(self) -> Any:
        """The compiled step."""
        return self.program.compile()

    @cached_property
    def probe(self) -> Probe:
        """The compiled look at the layers."""
        return compile_probe(self.program)

    @property
    def batch_size(self) -> int:
        """Sequences of a step."""
        return self.program.experiment.train.batch_size

    def samples(self, step: int) -> range:
        """The samples of the run that update number `step` (from 1) reads."""
        num_samples = self.batch_size // self.num_pieces
        start = self.first_sample + (step - 1 - self.first) * num_samples
        return range(start, start + num_samples)

    def local_samples(self, step: int) -> np.ndarray:
        """Those of `samples` that this process reads, int64 [n]."""
        samples = self.samples(step)
        return samples.start + self.program.layout.local_rows(len(samples))

    def read(self, data: TrainingData, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch of update number `step`."""
        batch = data.batch(self.local_samples(step))
        return batch if self.num_pieces == 1 else _cut(batch, self.num_pieces)

    def describe(self) -> str:
        """One line for start-up."""
        unit, per_example = self.program.model.units_per_example()
        return (
            f"steps {self.first + 1:,} to {self.last:,}: batch {self.batch_size:,} x "
            f"{per_example:,} = {self.batch_size * per_example:,} {unit}"
        )


def make_stages(experiment: Experiment, devices: Sequence[Any]) -> list[Stage]:
    """The stages of a resolved experiment, in order; the last is the run as configured.

    Raises:
      InputError: sizes of a stage do not fit together, or the run ends before the last stage.
    """
    final = make_program(experiment, devices)
    stages, first = [], 0
    num_steps = whole_steps(experiment.train.duration)
    for index, stage in enumerate(experiment.train.stages):
        last = first + whole_steps(stage.duration)
        if last >= num_steps:
            raise InputError(
                f"train.stages.{index} ends at step {last:,}, the run at step {num_steps:,}: "
                "lengthen train.duration"
            )
        num_pieces, own = _experiment_of(experiment, index, final.layout.num_data)
        start = int(pace(experiment).examples(first))
        try:
            # Its learning rates are meant for the batch of the whole run.
            program = replace(make_program(own, devices), optimizer=final.optimizer)
        except InputError as error:
            raise InputError(f"train.stages.{index}: {error}") from error
        stages.append(Stage(first, last, start, num_pieces, program))
        first = last
    start = int(pace(experiment).examples(first))
    return [*stages, Stage(first, num_steps, start, 1, final)]


def local_samples(stages: Sequence[Stage]) -> Callable[[int], np.ndarray]:
    """Update number -> the samples of it that this process reads. It can be sent to others."""
    portions = []
    for stage in stages:
        step = stage.first + 1
        local, num_samples = stage.local_samples(step), len(stage.samples(step))
        portions.append((stage.first, stage.last, local, num_samples))

    def samples_of(step: int) -> np.ndarray:
        found = (portion for portion in portions if step <= portion[1])
        first, _, samples, num_samples = next(found, portions[-1])
        return samples + (step - 1 - first) * num_samples

    return samples_of


def stage_of(stages: Sequence[Stage], step: int) -> Stage:
    """The stage of update number `step`, counted from 1."""
    return next((stage for stage in stages if step <= stage.last), stages[-1])


def _experiment_of(experiment: Experiment, index: int, num_data: int) -> tuple[int, Experiment]:
    """(pieces of an example, what the program of a stage is made of).

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


def _cut(batch: dict[str, np.ndarray], num_pieces: int) -> dict[str, np.ndarray]:
    """[b, t, ...] -> [b * pieces, t / pieces, ...]; what an example has once, each piece has."""
    return {
        name: x.reshape(len(x) * num_pieces, -1, *x.shape[2:])
        if x.ndim > 1
        else np.repeat(x, num_pieces)
        for name, x in batch.items()
    }
