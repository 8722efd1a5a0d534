"""A whole run: claims the folder, builds the program, restores or creates the state, trains."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxpretrain.config.durations import whole_steps
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.data.cache import cache_dir
from jaxpretrain.monitor.clock import Clock
from jaxpretrain.monitor.history import read_history
from jaxpretrain.monitor.plan import plan_of
from jaxpretrain.monitor.progress import Progress
from jaxpretrain.monitor.reporter import Reporter, Work
from jaxpretrain.monitor.watch import Watch
from jaxpretrain.monitor.writers import open_writers
from jaxpretrain.parallel import distributed
from jaxpretrain.parallel.checkpoint import Checkpoints
from jaxpretrain.parallel.devices import peak_flops
from jaxpretrain.parallel.host_memory import has_huge_pages
from jaxpretrain.train import loop
from jaxpretrain.train import workdir as folder
from jaxpretrain.train.experiment import Experiment, pace, resolve
from jaxpretrain.train.initial import initial_state
from jaxpretrain.train.stages import Stage, make_stages, stage_of
from jaxpretrain.train.stop import stop_requests


def train_experiment(
    experiment: Experiment, workdir: Path, *, allow_config_change: bool = False
) -> bool:
    """Trains or goes on; true when the run got to its end, false when it was asked to stop.

    Raises:
      InputError: something that was given is wrong; nothing was lost.
      NonFinite: the loss or the gradient stopped being a number.
    """
    clock = Clock()
    with ExitStack() as held:
        with distributed.agreed("start") as same:
            experiment = resolve(experiment)
            _configure_jax()
            stages = make_stages(experiment, jax.devices())
            program = stages[-1].program
            changes = folder.claim(workdir, experiment, allow_change=allow_config_change)
            limits = program.model.input_limits()
            data = experiment.data.open(seed=experiment.seed, limits=limits)
            eval_sets = experiment.data.open_evals(limits=limits)
            folder.check_data(workdir, data.fingerprint, allow_change=allow_config_change)
            same |= {"config": to_dict(experiment), "data": data.fingerprint}
            if distributed.is_primary():
                held.enter_context(folder.hold(workdir))
        lines = [*program.describe(), data.describe(), *changes]
        if len(stages) > 1:
            lines += [stage.describe() for stage in stages]
        if has_huge_pages():
            lines.append("host: large allocations take huge pages (GLIBC_TUNABLES)")
        return _train(stages, workdir, clock, data, eval_sets, lines)


def _train(
    stages: list[Stage],
    workdir: Path,
    clock: Clock,
    data: Any,
    eval_sets: list[Any],
    lines: list[str],
) -> bool:
    """Trains in a folder that is held; `lines` say to the user what was found until here."""
    program = stages[-1].program
    experiment = program.experiment
    with stop_requests() as stop:
        with distributed.agreed("restore"):
            checkpoints = _open_checkpoints(experiment, workdir)
            restored = checkpoints.restore_newest(program.state)
        first, state = (0, None) if restored is None else restored[:2]
        if restored is not None:
            clock.restore(restored[2]["clock"])
        resume_step = None if restored is None else first
        with _open_reporter(stages, workdir, clock, resume_step) as reporter:
            for line in lines:
                reporter.message(line)
            reporter.begin(first, to_dict(experiment))
            with clock.measure("compile"), distributed.agreed("compile"):
                if state is None:
                    first, state = initial_state(program)
                    if experiment.init_from is not None:
                        reporter.message(
                            f"{experiment.init_with} from {experiment.init_from}, at step {first:,}"
                        )
                _ = stage_of(stages, first + 1).train_step
                evaluators = experiment.eval.build(program.setting(data, eval_sets))
            if distributed.is_primary():
                folder.write_experiment(workdir, experiment, data.fingerprint)
                folder.keep_tokenizer(workdir, data.tokenizer_path)
            run = loop.Run(stages, workdir, data, evaluators, checkpoints, clock, reporter, stop)
            try:
                return loop.train(run, state, first)
            finally:
                checkpoints.close()


@contextmanager
def _open_reporter(
    stages: list[Stage], workdir: Path, clock: Clock, resume_step: int | None
) -> Iterator[Reporter]:
    """What reports to the terminal and to files, in the first process only."""
    monitor = stages[-1].program.experiment.monitor
    is_primary = distributed.is_primary()
    work = _work(stages)
    with Progress(work.total_steps, is_primary=is_primary) as progress:
        writers = open_writers(
            workdir,
            resume_step=resume_step,
            tensorboard=monitor.tensorboard,
            is_primary=is_primary,
            message=progress.message,
        )
        with writers:
            watch = _watch(stages[-1].program.experiment, workdir) if is_primary else None
            yield Reporter(work, writers, progress, clock, whole_steps(monitor.every), watch)


def _watch(experiment: Experiment, workdir: Path) -> Watch:
    """What judges the run, knowing what earlier sessions have left in `metrics.jsonl`."""
    plan = plan_of(experiment.optim, whole_steps(experiment.train.duration))
    path = workdir / "metrics.jsonl"
    return Watch(plan, read_history(path) if path.exists() else None)


def _configure_jax() -> None:
    """The compilation cache, before the first compilation."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _open_checkpoints(experiment: Experiment, workdir: Path) -> Checkpoints:
    kept = experiment.checkpoint
    return Checkpoints(
        workdir / "checkpoints",
        keep_last=kept.keep_last,
        keep_every=whole_steps(kept.keep_every or 0) or None,
    )


def _work(stages: list[Stage]) -> Work:
    program = stages[-1].program
    experiment = program.experiment
    unit, per_example = program.model.units_per_example()
    device = program.layout.mesh.devices.flat[0]
    peak = peak_flops(device.device_kind, experiment.model.dtype)
    causal = experiment.monitor.mfu_attention == "causal"

    def flops_per_unit(step: int) -> float:
        model = stage_of(stages, step).program.model
        return model.flops_per_example(causal=causal) / model.units_per_example()[1]

    return Work(
        unit=unit,
        units_per_example=per_example,
        pace=pace(experiment),
        flops_per_unit=flops_per_unit,
        peak_flops=None if peak is None else peak * program.layout.mesh.size,
        total_steps=whole_steps(experiment.train.duration),
        num_devices=program.layout.mesh.size,
        eval_every=whole_steps(experiment.eval.every),
        save_every=whole_steps(experiment.checkpoint.every),
    )
