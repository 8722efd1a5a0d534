"""The reporter of a run in each of its processes: the first has the files and the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import peak_flops
from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.diagnosis.history import History, read_history
from jaxpretrain.diagnosis.intent import plan_of
from jaxpretrain.diagnosis.predicted import read_prediction
from jaxpretrain.diagnosis.watch import Watch
from jaxpretrain.display.progress import Progress
from jaxpretrain.models.contract import count_computing
from jaxpretrain.monitor.reporter import Reporter, Work
from jaxpretrain.monitor.writers import Writers, open_writers
from jaxpretrain.parallel import distributed
from jaxpretrain.storage.jsonl import has_lines, newest_line
from jaxpretrain.track.beside import trackers_beside
from jaxpretrain.train.stages import Stages


@contextmanager
def open_reporter(
    stages: Stages,
    workdir: Path,
    clock: Clock,
    resume_step: int | None,
    guard: Callable[[], None],
    first_start: float | None,
) -> Iterator[Reporter]:
    """Yields the reporter to the terminal and to files, which only the first process has.

    `first_start` is the unix time at which the run began.
    """
    experiment = stages.program.experiment
    work, timeline = work_of(stages), experiment.timeline
    path, names = workdir / "metrics.jsonl", experiment.monitor.trackers

    def is_complete() -> bool:
        newest = newest_line(path, "train/loss")
        return newest is not None and newest["step"] >= work.total_steps

    if not distributed.is_primary():
        with (
            Progress(work.total_steps, is_shown=False) as progress,
            trackers_beside(workdir, names, progress.message, is_complete),
        ):
            yield Reporter(work, Writers(progress.message), progress, clock, timeline.log_every)
        return
    with (
        Progress(work.total_steps) as progress,
        trackers_beside(workdir, names, progress.message, is_complete) as begin_trackers,
        open_writers(
            workdir,
            progress.message,
            resume_step=resume_step,
            tensorboard=experiment.monitor.tensorboard,
            guard=guard,
        ) as writers,
    ):
        plan = plan_of(
            experiment.optim, timeline.num_steps, experiment.train.batch_size, timeline.stage_ends
        )
        plan = replace(plan, prediction=read_prediction(workdir))
        begin_trackers()  # the files are cut to the step that the run goes on from
        watch = Watch(plan, earlier_sessions(path, progress.message))
        yield Reporter(work, writers, progress, clock, timeline.log_every, watch, first_start)


def earlier_sessions(path: Path, say: Callable[[str], None]) -> History | None:
    """Returns what earlier sessions have written to `metrics.jsonl`, for the watch; None for none.

    A damaged line is said, and ends no run; nothing is known of earlier sessions then.
    """
    if not has_lines(path):
        return None
    try:
        return read_history(path)
    except InputError as error:
        say(f"warning: {error}. Until then, this run and its report know no earlier sessions")
        return None


def work_of(stages: Stages) -> Work:
    """Returns the work of the steps of a run."""
    program, timeline = stages.program, stages.program.experiment.timeline
    unit, per_example = program.model.units_per_example()
    mesh = program.layout.mesh
    peak = peak_flops(mesh.devices.flat[0].device_kind, program.experiment.model.dtype)

    def flops_per_unit(step: int, causal: bool) -> float:
        model = stages.at(step).program.model
        return model.flops_per_example(causal=causal) / model.units_per_example()[1]

    return Work(
        unit=unit,
        units_per_example=per_example,
        pace=timeline.pace,
        flops_per_unit=flops_per_unit,
        peak_flops=None if peak is None else peak * mesh.size,
        total_steps=timeline.num_steps,
        num_devices=mesh.size,
        num_parameters=count_computing(program.state.params),
        eval_every=timeline.eval_every,
        save_every=timeline.save_every,
    )
