"""A whole run: claims the folder, builds the program, restores or creates the state, trains."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.data.contract import EvalSet, TrainingData
from jaxpretrain.devices.chips import peak_flops
from jaxpretrain.devices.compilation import keep_compiled
from jaxpretrain.devices.huge_pages import has_huge_pages
from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.diagnosis.history import read_history
from jaxpretrain.diagnosis.intent import plan_of
from jaxpretrain.diagnosis.watch import Watch
from jaxpretrain.display.progress import Progress
from jaxpretrain.evals.contract import Evaluator
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.monitor.reporter import Reporter, Work
from jaxpretrain.monitor.writers import Writers, open_writers
from jaxpretrain.parallel import distributed
from jaxpretrain.train import loop
from jaxpretrain.train import workdir as folder
from jaxpretrain.train.initial import initial_state, require_initial_state
from jaxpretrain.train.memory import Memory, require_fit
from jaxpretrain.train.program import Program
from jaxpretrain.train.resolved import Resolved
from jaxpretrain.train.resume import (
    Point,
    describe_changes,
    newest_point,
    point_of,
    require_same_samples,
    taken_point,
)
from jaxpretrain.train.stages import Stages, make_stages
from jaxpretrain.train.state import TrainState
from jaxpretrain.train.stop import Stop, stop_requests


def train_experiment(
    experiment: Resolved,
    workdir: Path,
    *,
    allow_config_change: bool = False,
    given: Collection[str] = (),
) -> bool:
    """Trains or goes on; true when the run got to its end, false when it was asked to stop.

    Args:
      experiment: what is run.
      workdir: the folder of the run.
      allow_config_change: whether another run may go on in the folder.
      given: paths of config fields that this very start sets. Checkpoints that the last session
        kept may be deleted only if `checkpoint.keep_last` or `checkpoint.keep_every` is among them.

    Raises:
      InputError: something that was given is wrong; nothing was lost.
      NonFinite: the loss or the gradient stopped being a number.
      NotSaved: the state could not be saved.
    """
    clock = Clock()
    with ExitStack() as held:
        stop = held.enter_context(stop_requests())
        with distributed.fail_together("start") as same:
            opened = _open(experiment, workdir, allow_config_change, given, stop)
            same |= {
                "config": to_dict(opened.stages.program.experiment),
                "data": opened.data.fingerprint,
            }
            if distributed.is_primary():
                held.enter_context(folder.hold(workdir))
        return _train(opened, workdir, clock, stop)


def check_inputs(experiment: Resolved, workdir: Path, *, allow_config_change: bool) -> None:
    """Refuses what `train_experiment` would refuse before it compiles.

    Raises:
      InputError: something that was given is wrong.
    """
    with distributed.fail_together("inputs"):
        _open(experiment, workdir, allow_config_change, given=(), stop=None)


def preflight(experiment: Resolved) -> Memory:
    """Compiles the steps of the run and finds room for them; nothing is read or written.

    Raises:
      InputError: something that was given is wrong, or a step does not fit the devices.
    """
    with distributed.fail_together("preflight"):
        keep_compiled()
        stages = make_stages(experiment, jax.devices()).stages
        memories = [require_fit(stage.program, stage.train_step) for stage in stages]
    return max(memories, key=lambda memory: memory.total)


@dataclass(frozen=True)
class _Opened:
    """A run whose folder, data and sizes have been checked; nothing is compiled or written."""

    stages: Stages
    data: TrainingData
    eval_sets: Sequence[EvalSet]
    evaluators: list[Evaluator]
    """The evaluators, not compiled."""
    changes: list[str]
    """Lines about what has changed since the folder was last used."""
    point: Point | None
    """The checkpoint that the run goes on from, unless it proves damaged."""

    def describe(self) -> list[str]:
        """Lines for start-up."""
        lines = [*self.stages.program.describe(), self.data.describe(), *self.changes]
        found = [line for opened in (self.data, *self.eval_sets) for line in opened.notes]
        lines += dict.fromkeys(found)
        lines += self.stages.describe()
        if has_huge_pages():
            lines.append("host: large allocations take huge pages (GLIBC_TUNABLES)")
        return lines


def _open(
    experiment: Resolved,
    workdir: Path,
    allow_change: bool,
    given: Collection[str],
    stop: Stop | None,
) -> _Opened:
    experiment, kept = folder.kept_before(workdir, experiment, given)
    keep_compiled()
    stages = make_stages(experiment, jax.devices())
    changes = folder.claim(workdir, experiment, allow_change=allow_change)
    changes += folder.program_changes(workdir)
    folder.require_nothing_lost(workdir)
    limits = stages.program.model.input_limits()
    data = experiment.data.open(seed=experiment.seed, limits=limits)
    _check_document_end(experiment, data)
    eval_sets = experiment.data.open_evals(limits=limits)
    setting = stages.program.setting(data, eval_sets)
    if stop is not None:
        setting = replace(setting, between_batches=partial(loop.interrupt, stop))
    evaluators = experiment.eval.build(setting)
    identity = data.fingerprint, data.describe()
    folder.check_data(workdir, experiment, *identity, allow_change=allow_change)
    point = newest_point(workdir)
    if point is None:
        require_initial_state(stages.program)
        point = taken_point(experiment)
    if point is not None:
        require_same_samples(point, experiment, data.fingerprint)
    return _Opened(stages, data, eval_sets, evaluators, changes + kept, point)


def _check_document_end(experiment: Resolved, data: TrainingData) -> None:
    """Raises InputError when the model ends documents with another token than the data does."""
    model = experiment.model
    if not isinstance(model, Decoder) or data.eos_id is None:
        return
    if model.document_end not in (None, data.eos_id):
        raise InputError(
            f"model.document_end={model.document_end}, but the data ends its documents with "
            f"{data.eos_id}, so that attention would cross them; set "
            f"--config.model.document_end={data.eos_id}"
        )


def _train(opened: _Opened, workdir: Path, clock: Clock, stop: Stop) -> bool:
    """Trains in a folder that is held."""
    stages, data, program, point = opened.stages, opened.data, opened.stages.program, opened.point
    experiment = program.experiment
    with distributed.fail_together("restore"):
        checkpoints = _open_checkpoints(experiment, workdir)
        restored = checkpoints.restore_newest(program.state)
        if restored is not None:
            point = point_of(workdir, restored[0], restored[2])
            require_same_samples(point, experiment, data.fingerprint)
    state = None if restored is None else restored[1]
    if restored is not None:
        clock.restore(restored[2].get("clock", {}))
    first = 0 if point is None else point.step
    resume_step = None if restored is None else first
    with _open_reporter(stages, workdir, clock, resume_step) as reporter:
        for line in opened.describe():
            reporter.message(line)
        if point is not None:
            for line in describe_changes(point, experiment, data.fingerprint):
                reporter.message(line)
        reporter.begin(first, to_dict(experiment))
        with clock.measure("compile"), distributed.fail_together("compile"):
            stage = stages.at(first + 1)
            memory = require_fit(stage.program, stage.train_step)
            reporter.message(f"memory of the step: {memory.describe()}")
            if state is None:
                first, state = _begin(program, reporter)
            for evaluator in opened.evaluators:
                evaluator.compile()
                for line in evaluator.notes():
                    reporter.message(line)
        if distributed.is_primary():
            _write_down(opened, workdir, memory, first, resume_step)
        run = loop.Run(
            stages,
            workdir,
            data,
            opened.evaluators,
            checkpoints,
            clock,
            reporter,
            stop,
            is_evaluation_due=restored is not None and restored[2].get("evaluation_due", False),
        )
        try:
            return loop.train(run, state, first)
        finally:
            checkpoints.wait()
            loop.tell_saves(run)


def _begin(program: Program, reporter: Reporter) -> tuple[int, TrainState]:
    """Returns the finished steps and the state of a run without a checkpoint of its own."""
    first, state = initial_state(program)
    experiment = program.experiment
    if experiment.init_from is not None:
        sample = int(experiment.timeline.pace.examples(first))
        reporter.message(
            f"{experiment.init_with} from {experiment.init_from}, at step {first:,} and sample "
            f"{sample:,} of the data"
        )
    return first, state


def _write_down(
    opened: _Opened, workdir: Path, memory: Memory, first: int, last_saved: int | None
) -> None:
    """Writes what runs, on which data, and that a session begins after `first` finished steps."""
    experiment, data = opened.stages.program.experiment, opened.data
    folder.write_experiment(
        workdir,
        experiment,
        data.fingerprint,
        memory,
        eos_id=data.eos_id,
        data_description=data.describe(),
        first_step=first if first < experiment.timeline.num_steps else None,
        last_saved=last_saved,
    )
    folder.keep_tokenizer(workdir, data.tokenizer_path)


@contextmanager
def _open_reporter(
    stages: Stages, workdir: Path, clock: Clock, resume_step: int | None
) -> Iterator[Reporter]:
    """What reports to the terminal and to files, in the first process only."""
    experiment = stages.program.experiment
    is_primary = distributed.is_primary()
    work = _work(stages)
    with Progress(work.total_steps, is_shown=is_primary) as progress:
        writers = Writers(progress.message)
        if is_primary:
            writers = open_writers(
                workdir,
                progress.message,
                resume_step=resume_step,
                tensorboard=experiment.monitor.tensorboard,
            )
        with writers:
            watch = _watch(experiment, workdir) if is_primary else None
            yield Reporter(work, writers, progress, clock, experiment.timeline.log_every, watch)


def _watch(experiment: Resolved, workdir: Path) -> Watch:
    """What judges the run, knowing what earlier sessions have left in `metrics.jsonl`."""
    timeline = experiment.timeline
    plan = plan_of(
        experiment.optim, timeline.num_steps, experiment.train.batch_size, timeline.stage_ends
    )
    path = workdir / "metrics.jsonl"
    return Watch(plan, read_history(path) if path.exists() else None)


def _open_checkpoints(experiment: Resolved, workdir: Path) -> Checkpoints:
    return Checkpoints(
        workdir / "checkpoints",
        keep_last=experiment.checkpoint.keep_last,
        keep_every=experiment.timeline.keep_every,
    )


def _work(stages: Stages) -> Work:
    program = stages.program
    experiment = program.experiment
    unit, per_example = program.model.units_per_example()
    device = program.layout.mesh.devices.flat[0]
    peak = peak_flops(device.device_kind, experiment.model.dtype)

    def flops_per_unit(step: int, causal: bool) -> float:
        model = stages.at(step).program.model
        return model.flops_per_example(causal=causal) / model.units_per_example()[1]

    return Work(
        unit=unit,
        units_per_example=per_example,
        pace=experiment.timeline.pace,
        flops_per_unit=flops_per_unit,
        peak_flops=None if peak is None else peak * program.layout.mesh.size,
        total_steps=experiment.timeline.num_steps,
        num_devices=program.layout.mesh.size,
        eval_every=experiment.timeline.eval_every,
        save_every=experiment.timeline.save_every,
    )
