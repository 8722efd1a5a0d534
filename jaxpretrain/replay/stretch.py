"""A stretch of a run, opened to be computed again: from which checkpoint, which steps, on what.

State, data and draws are functions of the seed and the step, so that the program of the run, from
one of its checkpoints, makes the same steps. The folder of the run is only read.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import jax
import numpy as np

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.streamed import CorruptCheckpoint
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.contract import Batch, TrainingData
from jaxpretrain.data.loader import load_batches
from jaxpretrain.data.skip import open_training, parse_ranges
from jaxpretrain.devices.memory import Device
from jaxpretrain.devices.startup import keep_compiled
from jaxpretrain.display.wording import count_of, format_seconds
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.storage.jsonl import has_lines, read_blocks
from jaxpretrain.train import resume
from jaxpretrain.train import workdir as folder
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import Program
from jaxpretrain.train.stages import StageProgram, Stages, make_stages
from jaxpretrain.train.step import TrainState

Line = Mapping[str, float | None]
"""The metrics of a step by name; None where a number is not finite."""
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Upcoming:
    """A step that is about to be made."""

    number: int
    stage: StageProgram
    state: TrainState
    """The state that the step begins with; it is used up by the step."""
    rows: Batch
    """The batch on this machine."""
    batch: Mapping[str, jax.Array]
    """The batch on the devices."""


Look = Callable[[Upcoming], Seen | None]
"""The type of a function that looks at a step before it is made."""


@dataclass(frozen=True)
class Step(Generic[Seen]):
    """A step that was computed again."""

    number: int
    metrics: dict[str, float]
    signals: dict[str, np.ndarray]
    """Arrays of parts and layers by name."""
    seen: Seen | None
    """The result of the look at the step, None before the stretch or without a look."""


@dataclass(frozen=True)
class Stretch:
    """The steps `first` to `last` of a run, reached from its checkpoint `start`."""

    workdir: Path
    stages: Stages
    data: TrainingData
    start: int
    """The number of finished steps that the replay begins with; 0: the initial state."""
    first: int
    last: int
    recorded: Mapping[int, Line]
    """The lines of `metrics.jsonl` about steps after `start`, by step."""
    signals: Mapping[int, Mapping[str, object]]
    """The lines of `signals.jsonl` about these steps."""
    before: Line
    """The newest line of `metrics.jsonl` about a step until `start`; {} without one."""
    notes: Sequence[str]
    """Lines about code, versions and devices that are not the run's."""

    @property
    def experiment(self) -> Resolved:
        """The experiment of the run."""
        return self.stages.program.experiment

    @property
    def num_steps(self) -> int:
        """The number of steps that are computed."""
        return self.last - self.start

    @property
    def rate_before(self) -> float:
        """The learning rate of step `start`: as recorded, else that of the schedule."""
        recorded = self.before.get("train/learning_rate")
        if recorded is not None and self.before["step"] == self.start:
            return recorded
        return float(np.asarray(self.stages.program.optimizer.learning_rate(self.start)))

    def describe(self) -> list[str]:
        """Returns lines about what differs, and how many steps there are and how long they take."""
        whence = f"checkpoint {self.start:,}" if self.start else "the initial state"
        seconds = self._seconds()
        took = "" if seconds is None else f"; the run took {format_seconds(seconds)} for them"
        way = count_of(self.num_steps, "step")
        return [
            *self.notes,
            f"{way} from {whence} to step {self.last:,}{took}",
            f"devices: {self.stages.program.layout.describe()}",
        ]

    def restore(self) -> TrainState:
        """Returns the state that the stretch begins with; InputError where it cannot be read."""
        if not self.start:
            return initial_state(self.stages.program)
        try:
            return kept_checkpoints(self.workdir).restore(self.start, self.stages.program.state)[0]
        except CorruptCheckpoint as error:
            raise InputError(
                f"{self.workdir}: checkpoint {self.start} is damaged ({error}); --from=STEP takes "
                "another one"
            ) from error

    def run(self, state: TrainState, look: Look[Seen] | None = None) -> Iterator[Step[Seen]]:
        """Yields the steps after `start`, made by the run's own program; the state is used up.

        The layers are looked at as in the run, after the step, in the stretch and wherever the run
        has recorded them.
        """
        read = partial(self.stages.read, self.data)
        with load_batches(read, self.start + 1, self.last + 1) as batches:
            for number, rows in enumerate(batches, start=self.start + 1):
                stage = self.stages.at(number)
                batch = stage.program.layout.put(rows, stage.batch_size)
                is_shown = number >= self.first
                upcoming = Upcoming(number, stage, state, rows, batch)
                seen = look(upcoming) if look and is_shown else None
                state, metrics = stage.train_step(state, batch)
                signals = metrics.pop("signals")
                if is_shown or number in self.signals:
                    signals |= stage.probe(state.params, batch)
                found, signals = jax.device_get((metrics, signals))
                values = {name: float(value) for name, value in found.items()}
                yield Step(number, values, signals, seen)

    def _seconds(self) -> float | None:
        """Returns how long the run took for the steps; None where it has not recorded that."""
        unit, per_example = self.stages.program.model.units_per_example()
        lines = [self.before, *self.recorded.values()]
        rates = [rate for line in lines if (rate := line.get(f"perf/{unit}_per_second"))]
        if not rates:
            return None
        pace = self.experiment.timeline.pace
        examples = pace.examples(self.last) - pace.examples(self.start)
        return float(examples) * per_example / float(np.median(rates))


def open_stretch(workdir: Path, steps: str, start: int | None = None) -> Stretch:
    """Opens steps such as "4990-5010" of a run; `start` is the checkpoint to begin with.

    InputError: the run has no such steps, no checkpoint before them, no lines about them, or its
    data is gone or has changed.
    """
    ranges = parse_ranges([steps], "--steps")
    (first, last), flag = ranges[0], f"--steps={steps}"
    if not first:
        raise InputError(f"{flag}: steps count from 1")
    experiment = folder.read_experiment(workdir)
    recorded, before = read_recorded(workdir), {}
    signals = _lines(workdir / "signals.jsonl", "step", last)
    kept = kept_checkpoints(workdir).steps()
    ended = max([*recorded, *kept], default=0)
    if last > ended:
        raise InputError(f"{flag}: the run in {workdir} has got to step {ended:,}")
    start = _start(kept, first, start, flag)
    if earlier := [step for step in recorded if step <= start]:
        before = recorded[max(earlier)]
    recorded = {step: line for step, line in recorded.items() if start < step <= last}
    if not recorded:
        raise InputError(
            f"{flag}: {workdir}/metrics.jsonl has no losses of the steps {start + 1:,} to "
            f"{last:,}, to which they could be compared; the run records every "
            f"{experiment.timeline.log_every:,} steps: end the stretch at one of these"
        )
    keep_compiled()
    stages, notes = fitting_stages(experiment, jax.devices())
    return Stretch(
        workdir=workdir,
        stages=stages,
        data=open_data(stages.program.experiment, stages, workdir),
        start=start,
        first=first,
        last=last,
        recorded=recorded,
        signals={step: line for step, line in signals.items() if step > start},
        before=before,
        notes=[*folder.program_changes(workdir, first), *notes],
    )


def open_data(experiment: Resolved, stages: Stages, workdir: Path | None = None) -> TrainingData:
    """Returns the opened data of an experiment; with a run's folder, it must be the run's data."""
    limits = stages.program.model.input_limits()
    data = open_training(experiment.data, seed=experiment.seed, limits=limits)
    if workdir is None:
        return data
    saved = folder.saved_document(workdir)
    if (was := saved.get("data_fingerprint")) != data.fingerprint:
        before = saved.get("data_description") or "not written down"
        raise InputError(
            f"--workdir={workdir}: the data is not that of this run: it holds "
            f"[{data.describe()}], was [{before}]; fingerprint {data.fingerprint}, was {was}. A "
            "replay needs the files of before"
        )
    return data


def initial_state(program: Program) -> TrainState:
    """Returns the state before the first step of a run; InputError where it began elsewhere."""
    step, state = resume.initial_state(program)
    if step:
        raise InputError(f"--from=0: the run began at step {step:,}, in another folder")
    return state


def read_recorded(workdir: Path) -> dict[int, Line]:
    """Returns the lines of `metrics.jsonl` with a loss by their steps; InputError without any."""
    path = workdir / "metrics.jsonl"
    if not has_lines(path):
        raise InputError(f"{workdir} holds no run with recorded losses: there is no {path.name}")
    return _lines(path, "train/loss", math.inf)


def fitting_stages(experiment: Resolved, devices: Sequence[Device]) -> tuple[Stages, list[str]]:
    """Returns the programs of a run on the devices at hand, and lines about another mesh.

    Where the run's own mesh does not fit, as many devices as divide its batches share them.
    InputError: not even one device does.
    """
    try:
        return make_stages(experiment, devices), []
    except InputError as error:
        why = error
    for number in range(len(devices), 0, -1):
        try:
            stages = make_stages(replace(experiment, mesh=Mesh()), devices[:number])
        except InputError:
            continue
        return stages, [f"another mesh than the run's: {why}"]
    raise why


def _start(kept: Sequence[int], first: int, wanted: int | None, flag: str) -> int:
    """Returns the checkpoint that a stretch begins with, or 0; InputError where there is none."""
    listed = ", ".join(f"{step:,}" for step in kept) or "none"
    if wanted is not None:
        if wanted >= first:
            raise InputError(f"--from={wanted}: must lie before the steps, {flag}")
        if wanted and wanted not in kept:
            raise InputError(f"--from={wanted}: is not kept; the checkpoints are {listed}")
        return wanted
    if before := [step for step in kept if step < first]:
        return before[-1]
    if first == 1:
        return 0
    raise InputError(
        f"{flag}: no checkpoint before step {first:,} is kept; the checkpoints are {listed}. "
        "--from=0 begins with the initial state, at step 1"
    )


def kept_checkpoints(workdir: Path) -> Checkpoints:
    """Returns the checkpoints of a run, which are only read."""
    return Checkpoints(workdir / "checkpoints", read_only=True)


def _lines(path: Path, mark: str, last: float) -> dict[int, Line]:
    """Returns the lines of a file until a step that have some name, by their steps."""
    lines = (line for _, records in read_blocks(path) for line in records)
    return {line["step"]: line for line in lines if line["step"] <= last and mark in line}
