"""A whole run: claims the folder, builds the program, restores or creates the state, trains."""

import os
from pathlib import Path
from typing import Any

import jax

from jaxpretrain.config.serialize import to_dict
from jaxpretrain.data.cache import cache_dir
from jaxpretrain.evals.contract import Evaluator
from jaxpretrain.evals.generate import Generator, Samples
from jaxpretrain.evals.perplexity import Perplexity
from jaxpretrain.monitor.clock import Clock
from jaxpretrain.monitor.progress import Progress
from jaxpretrain.monitor.reporter import Reporter, Work
from jaxpretrain.monitor.writers import open_writers
from jaxpretrain.parallel.checkpoint import Checkpoints
from jaxpretrain.parallel.devices import peak_flops
from jaxpretrain.train import loop
from jaxpretrain.train import workdir as folder
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.stop import stop_on_signal


def train_experiment(
    experiment: Experiment, workdir: Path, *, allow_config_change: bool = False
) -> bool:
    """Trains or goes on; true when the run got to its end, false when it was asked to stop.

    Raises:
      InputError: something that was given is wrong; nothing was lost.
      NonFinite: the loss or the gradient stopped being a number.
    """
    clock = Clock()
    experiment = resolve(experiment)
    _configure_jax(experiment)
    program = make_program(experiment, jax.devices())
    changes = folder.claim(workdir, experiment, allow_change=allow_config_change)
    data = experiment.data.open(seed=experiment.seed, limits=program.model.input_limits())
    folder.check_data(workdir, data.fingerprint, allow_change=allow_config_change)
    eval_sets = experiment.data.open_evals(limits=program.model.input_limits())
    checkpoints = _open_checkpoints(experiment, workdir)

    with stop_on_signal() as stop:
        restored = checkpoints.restore_newest(program.state)
        first, state = (0, None) if restored is None else restored[:2]
        if restored is not None:
            clock.restore(restored[2]["clock"])
        work = _work(program)
        is_primary = jax.process_index() == 0
        progress = Progress(work.total_steps, is_primary=is_primary)
        writers = open_writers(
            workdir,
            resume_step=None if restored is None else first,
            tensorboard=experiment.monitor.tensorboard,
            is_primary=is_primary,
            message=progress.message,
        )
        with progress, writers:
            for line in [*program.describe(), data.describe(), *changes]:
                progress.message(line)
            folder.write_experiment(workdir, experiment, data.fingerprint)
            folder.keep_tokenizer(workdir, data.tokenizer_path)
            writers.hparams(to_dict(experiment))
            progress.message(_starts(first, work.total_steps))
            with clock.measure("compile"):
                train_step = program.compile()
                evaluators = _make_evaluators(program, eval_sets, data.tokenizer_path)
                state = program.create_state() if state is None else state
            run = loop.Run(
                program=program,
                workdir=workdir,
                train_step=train_step,
                data=data,
                evaluators=evaluators,
                checkpoints=checkpoints,
                clock=clock,
                reporter=Reporter(work, writers, progress, clock, _int(experiment.monitor.every)),
                stop=stop,
            )
            try:
                return loop.train(run, state, first)
            finally:
                checkpoints.close()


def _configure_jax(experiment: Experiment) -> None:
    """Compilation cache and determinism, before the first compilation."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _open_checkpoints(experiment: Experiment, workdir: Path) -> Checkpoints:
    kept = experiment.checkpoint
    return Checkpoints(
        workdir / "checkpoints",
        keep_last=kept.keep_last,
        keep_every=None if kept.keep_every is None else _int(kept.keep_every),
    )


def _make_evaluators(
    program: Program, eval_sets: list[Any], tokenizer: Path | None
) -> list[Evaluator]:
    config = program.experiment.eval
    evaluators: list[Evaluator] = []
    if eval_sets:
        evaluators.append(
            Perplexity(
                program.model,
                program.layout,
                program.state.params,
                eval_sets,
                batch_size=program.eval_batch_size,
                max_examples=config.max_examples,
            )
        )
    if config.prompts and tokenizer is not None:
        generator = Generator(program.model, tokenizer)
        evaluators.append(Samples(generator, config.prompts, config.sample_tokens))
    return evaluators


def _work(program: Program) -> Work:
    experiment = program.experiment
    unit, per_example = program.model.units_per_example()
    device = program.layout.mesh.devices.flat[0]
    peak = peak_flops(device.device_kind, experiment.model.dtype)
    batch_size = experiment.train.batch_size
    causal = experiment.monitor.mfu_attention == "causal"
    return Work(
        unit=unit,
        units_per_step=batch_size * per_example,
        flops_per_step=batch_size * program.model.flops_per_example(causal=causal),
        peak_flops=None if peak is None else peak * program.layout.mesh.size,
        total_steps=_int(experiment.train.duration),
        eval_every=_int(experiment.eval.every),
        save_every=_int(experiment.checkpoint.every),
    )


def _starts(first: int, total: int) -> str:
    if first >= total:
        return f"nothing left to do: {first:,} of {total:,} steps are done"
    return f"going on after step {first:,}" if first else "starting at step 0"


def _int(duration: int | str) -> int:
    assert isinstance(duration, int), "the experiment is not resolved"
    return duration
