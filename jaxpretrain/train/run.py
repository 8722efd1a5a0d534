"""A whole run: opens its folder and data, restores or creates the state, and trains."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from jaxpretrain.checkpoints.local import LocalCheckpoints, restore_newest
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.rewind import require_kept
from jaxpretrain.checkpoints.saving import seconds_for
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.data.contract import EvalSet, TrainingData
from jaxpretrain.data.skip import open_training, unreached
from jaxpretrain.devices.startup import has_huge_pages, keep_compiled
from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.display.progress import activity
from jaxpretrain.display.wording import format_facts, format_seconds
from jaxpretrain.evals.contract import Evaluator, compile_evaluators
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.monitor.reporter import Reporter
from jaxpretrain.monitor.sessions import Sessions
from jaxpretrain.parallel import distributed
from jaxpretrain.parallel.stop import stop_requests
from jaxpretrain.track.beside import FLAG
from jaxpretrain.track.contract import require_packages
from jaxpretrain.train import loop, resume
from jaxpretrain.train import workdir as folder
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import Memory, Program, require_fit
from jaxpretrain.train.reporting import open_reporter
from jaxpretrain.train.saves import NotSaved, Saver
from jaxpretrain.train.stages import Stages, make_stages
from jaxpretrain.train.step import TrainState
from jaxpretrain.train.watchdog import Watchdog

_COMPILATIONS = 10
"""Multiple of the usual time of a compilation after which it stands still."""


@dataclass(frozen=True)
class Opened:
    """A run whose folder, data and sizes have been checked; nothing is compiled or written."""

    stages: Stages
    data: TrainingData
    eval_sets: Sequence[EvalSet]
    evaluators: list[Evaluator]
    """The evaluators, not compiled."""
    changes: list[str]
    """Lines about what has changed since the folder was last used."""
    point: resume.ResumePoint | None
    """The checkpoint that the run goes on from, unless it proves damaged."""

    @property
    def experiment(self) -> Resolved:
        """The experiment, with the checkpoints that earlier sessions keep."""
        return self.stages.program.experiment

    def describe(self) -> list[str]:
        """Returns lines for start-up: facts by their subject, then changes and notes."""
        facts = self.stages.describe() | {"data": [self.data.describe()]}
        if has_huge_pages():
            facts["host"] = ["large allocations use huge pages (GLIBC_TUNABLES)"]
        notes = [line for opened in (self.data, *self.eval_sets) for line in opened.notes]
        return [format_facts(facts), *self.changes, *dict.fromkeys(notes)]


def open_run(
    experiment: Resolved,
    workdir: Path,
    *,
    allow_config_change: bool,
    given: Collection[str] = (),
    between_batches: Callable[[], None] | None = None,
    earlier: Opened | None = None,
    rewind_to: int | None = None,
) -> Opened:
    """Opens and checks all that `train_experiment` needs before it compiles anything.

    `given` are the paths of config fields that this very start sets: checkpoints that the last
    session kept may be deleted only if `checkpoint.keep_last` or `checkpoint.keep_every` is among
    them. `between_batches` is called between the batches of evaluations. `earlier` is the same run
    as it was opened before; its data is not opened again. `rewind_to` is a step to go back to;
    here it is only checked. InputError: something that was given is wrong.
    """
    if distributed.is_primary():
        require_packages(experiment.monitor.trackers, FLAG)
    experiment, kept = folder.kept_before(workdir, experiment, given)
    keep_compiled()
    stages = make_stages(experiment, jax.devices())
    changes = folder.check_owner(workdir, experiment, allow_change=allow_config_change)
    changes += folder.program_changes(workdir)
    folder.require_nothing_lost(workdir)
    if earlier is None:
        limits = stages.program.model.input_limits()
        data = open_training(experiment.data, seed=experiment.seed, limits=limits)
        eval_sets = experiment.data.open_evals(limits=limits)
    else:
        data, eval_sets = earlier.data, earlier.eval_sets
    _check_document_end(experiment, data)
    setting = stages.program.setting(data, eval_sets)
    if between_batches is not None:
        setting = replace(setting, between_batches=between_batches)
    evaluators = experiment.eval.build(setting)
    identity = data.fingerprint, data.describe()
    folder.check_data(workdir, experiment, *identity, allow_change=allow_config_change)
    if rewind_to is not None:
        require_kept(workdir, rewind_to)
    point = resume.newest_point(workdir, rewind_to)
    if point is None and rewind_to is None:
        resume.require_initial_state(stages.program)
        point = resume.taken_point(experiment)
    if point is not None:
        resume.require_same_samples(point, experiment, data.fingerprint)
    kept += unreached(data, int(experiment.timeline.pace.examples(experiment.timeline.num_steps)))
    return Opened(stages, data, eval_sets, evaluators, changes + kept, point)


Look = Callable[[Program, jax.stages.Compiled], Sequence[str]]
"""Looks at a compiled step and returns lines about it for start-up."""


def train_experiment(
    experiment: Resolved,
    workdir: Path,
    *,
    allow_config_change: bool = False,
    given: Collection[str] = (),
    earlier: Opened | None = None,
    watchdog: Watchdog | None = None,
    look: Look = lambda program, compiled: (),
    rewind_to: int | None = None,
) -> bool:
    """Trains a run from its beginning or its newest checkpoint; see `open_run` for the arguments.

    `watchdog` is told what the run does; without one, nothing ends a run that stands still.

    Returns true when it got to its end, false when it was asked to stop. Raises InputError where
    something that was given is wrong and nothing was lost; loop.Ended: the run has ended itself.
    """
    clock, watchdog = Clock(), watchdog or Watchdog(workdir)
    watchdog.begin(experiment.timeline.stall)
    with stop_requests() as stop, ExitStack() as held:
        open_ = partial(
            open_run,
            experiment,
            workdir,
            allow_config_change=allow_config_change,
            given=given,
            between_batches=partial(loop.between_batches, stop, watchdog),
            earlier=earlier,
            rewind_to=rewind_to,
        )
        opened, guard = _open_together(open_, workdir, held)
        start = _restore(opened, workdir, clock, guard, watchdog, rewind_to)
        reporter = held.enter_context(
            open_reporter(opened.stages, workdir, clock, start.resumed, guard, start.first_start)
        )
        for line in [*opened.describe(), *start.changes]:
            reporter.message(line)
        reporter.begin(start.first, to_dict(opened.experiment))
        with clock.measure("compile"), distributed.fail_together("compile"):
            memory, first, state = _compile(opened, start, reporter, watchdog, look)
        _write_down(opened, workdir, memory, first, start.saved)
        saver = _saver(opened, start, workdir, clock, reporter, watchdog)
        run = loop.Run(
            stages=opened.stages,
            workdir=workdir,
            data=opened.data,
            evaluators=opened.evaluators,
            saver=saver,
            clock=clock,
            reporter=reporter,
            stop=stop,
            watchdog=watchdog,
            is_evaluation_due=start.is_evaluation_due,
        )
        try:
            return loop.train(run, state, first)
        finally:
            watchdog.enter("end")
            saver.end()


def _local(experiment: Resolved, workdir: Path) -> LocalCheckpoints | None:
    """Returns the checkpoints on the disk of this host; None where the run makes none."""
    place = experiment.checkpoint.local_dir
    if place is None:
        return None
    local = LocalCheckpoints(Path(place), workdir)
    if not folder.has_run(workdir):  # the one whose checkpoints lie there is deleted
        local.abandon(after=-1)
    return local


def _open_together(
    open_: Callable[[], Opened], workdir: Path, held: ExitStack
) -> tuple[Opened, Callable[[], None]]:
    """Opens a run in all processes, and returns it with the guard of its folder, which is held."""
    with (
        distributed.fail_together("start") as same,
        activity("opening the folder and the data", is_shown=distributed.is_primary()),
    ):
        opened = open_()
        same |= {"config": to_dict(opened.experiment), "data": opened.data.fingerprint}
        if distributed.is_primary():  # which keeps other runs out of the folder
            return opened, held.enter_context(folder.lock(workdir))
    return opened, _unguarded


def _check_document_end(experiment: Resolved, data: TrainingData) -> None:
    """Raises InputError where the model ends documents with another token than the data."""
    model = experiment.model
    if not isinstance(model, Decoder) or data.eos_id is None:
        return
    if model.document_end not in (None, data.eos_id):
        raise InputError(
            f"model.document_end={model.document_end}, but the data ends its documents with "
            f"{data.eos_id}, so that attention would cross them; set "
            f"--config.model.document_end={data.eos_id}"
        )


@dataclass(frozen=True)
class _Start:
    """The state that a session begins with, and lines about changes since it was saved."""

    checkpoints: Checkpoints
    local: LocalCheckpoints | None
    first: int = 0  # finished steps
    changes: Sequence[str] = ()
    state: TrainState | None = None  # of the newest checkpoint; None where the folder has none
    is_evaluation_due: bool = False
    sessions: Sessions | None = None  # in the first process
    saved: int | None = None  # the step of the newest checkpoint of the folder; None without one

    @property
    def first_start(self) -> float | None:
        """The unix time at which the run began, in the first process."""
        return None if self.sessions is None else self.sessions.first_start

    @property
    def resumed(self) -> int | None:
        """The step of the checkpoint that is gone on from; None without one."""
        return None if self.state is None else self.first


def _unguarded() -> None:
    """Does what the guard of a process that changes nothing does."""


def _restore(
    opened: Opened,
    workdir: Path,
    clock: Clock,
    guard: Callable[[], None],
    watchdog: Watchdog,
    rewind_to: int | None,
) -> _Start:
    """Restores the state and the clock from the newest checkpoint that is sound, or an older one.

    `rewind_to` is the step of the older one; None: the newest.
    """
    experiment, point = opened.experiment, opened.point
    watchdog.enter("restore", allowance=seconds_for(opened.stages.program.state))
    with (
        distributed.fail_together("restore"),
        activity("reading the newest checkpoint", is_shown=distributed.is_primary()),
    ):
        checkpoints = Checkpoints(
            workdir / "checkpoints",
            keep_last=experiment.checkpoint.keep_last,
            keep_every=experiment.timeline.keep_every,
            guard=guard,
        )
        local = _local(experiment, workdir)
        lines, like = [], opened.stages.program.state
        if rewind_to is None:
            found = restore_newest(checkpoints, local, like)
        else:
            found, lines = resume.go_back(workdir, rewind_to, checkpoints, like)
        step, state, document = found or (0, None, {})
        saved = next(reversed(checkpoints.steps()), None)
        _require_room(opened, checkpoints, step)
        if found is not None:
            point = resume.point_of(workdir, step, document)
            resume.require_same_samples(point, experiment, opened.data.fingerprint)
        if local is not None:  # what is newer is not whole everywhere, or was gone back behind
            local.abandon(after=step)
    watchdog.enter("compile")
    clock.restore(document.get("clock", {}))
    sessions = Sessions(workdir) if distributed.is_primary() else None
    if sessions is not None:
        spent = watchdog.spent
        known = (spent.pop(phase, 0.0) for phase in ("rendezvous", "restore"))
        sessions.begin(clock, *known)
    if point is None:
        return _Start(checkpoints, local, sessions=sessions)
    changes = lines + resume.describe_changes(point, experiment, opened.data.fingerprint)
    is_evaluation_due = document.get("evaluation_due", False)
    return _Start(
        checkpoints, local, point.step, changes, state, is_evaluation_due, sessions, saved
    )


def _require_room(opened: Opened, checkpoints: Checkpoints, step: int) -> None:
    """Raises NotSaved where steps are left, and the disk has no room for a checkpoint."""
    is_complete = step >= opened.experiment.timeline.num_steps
    if not is_complete and (problem := checkpoints.shortage(opened.stages.program.state)):
        where = checkpoints.directory
        raise NotSaved(f"{where}: {problem}; nothing was trained. Make room, and start again")


def _compile(
    opened: Opened, start: _Start, reporter: Reporter, watchdog: Watchdog, look: Look
) -> tuple[Memory, int, TrainState]:
    """Compiles the step and the evaluations; returns memory, finished steps and the state."""
    watchdog.enter("compile")
    stage = opened.stages.at(start.first + 1)
    with reporter.activity("tracing the step"):
        seconds = stage.program.compile_seconds()
    watchdog.enter("compile", allowance=_COMPILATIONS * seconds)
    about = format_seconds(seconds)
    with reporter.activity(f"compiling the step (usually {about})"):
        memory = require_fit(stage.program, stage.train_step)
    watchdog.beat()
    lines = look(stage.program, stage.train_step)
    facts = {"memory": [memory.describe()]} | ({"step": lines} if lines else {})
    reporter.message(format_facts(facts))
    first, state = start.first, start.state
    if state is None:
        with reporter.activity("creating the initial state"):
            first, state = _begin(opened.stages.program, reporter)
    watchdog.beat()
    with reporter.activity("compiling the evaluations"):
        compile_evaluators(opened.evaluators, reporter.message)
    return memory, first, state


def _saver(
    opened: Opened,
    start: _Start,
    workdir: Path,
    clock: Clock,
    reporter: Reporter,
    watchdog: Watchdog,
) -> Saver:
    """Returns what saves the state of the run."""
    timeline, state = opened.experiment.timeline, opened.stages.program.state
    return Saver(
        workdir,
        timeline,
        start.checkpoints,
        start.local,
        state,
        clock,
        reporter,
        watchdog,
        start.sessions,
    )


def _begin(program: Program, reporter: Reporter) -> tuple[int, TrainState]:
    """Returns the finished steps and the state of a run without a checkpoint of its own."""
    first, state = resume.initial_state(program)
    experiment = program.experiment
    if experiment.init_from is not None:
        sample = int(experiment.timeline.pace.examples(first))
        reporter.message(
            f"{experiment.init_with} from {experiment.init_from}, at step {first:,} and sample "
            f"{sample:,} of the data"
        )
    return first, state


def _write_down(
    opened: Opened, workdir: Path, memory: Memory, first: int, last_saved: int | None
) -> None:
    """Writes the experiment, its data, and that a session begins after `first` finished steps."""
    if not distributed.is_primary():
        return
    experiment, data = opened.experiment, opened.data
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
