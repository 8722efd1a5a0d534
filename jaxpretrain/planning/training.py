"""A training run from its command line to its exit code.

Fields that are `auto` are chosen first. When a device runs out of memory after all, the run goes on
from its last save with a smaller microbatch, once.
"""

import gc
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.errors import JaxRuntimeError

from jaxpretrain.config.command import EXIT_STOPPED, console_command
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.devices.memory import is_out_of_memory
from jaxpretrain.devices.startup import use_most_memory
from jaxpretrain.display.progress import say
from jaxpretrain.display.wording import format_facts
from jaxpretrain.parallel import distributed
from jaxpretrain.planning.audit import audit
from jaxpretrain.planning.auto import choose, chosen_before, stand_in, step_down
from jaxpretrain.planning.console import compilation
from jaxpretrain.planning.machines import count_hosts
from jaxpretrain.planning.search import open_choices
from jaxpretrain.train.experiment import Resolved, resolve, skip_steps
from jaxpretrain.train.program import Program
from jaxpretrain.train.run import Opened, open_run, train_experiment
from jaxpretrain.train.saves import Ended
from jaxpretrain.train.stages import preflight
from jaxpretrain.train.watchdog import DEFAULT_SECONDS, Watchdog

_GO_ON = "stopped and saved; run the same command to go on"


def run_training(
    config: str,
    overrides: Sequence[tuple[str, str]],
    workdir: Path | None,
    *,
    preflight_only: bool,
    allow_config_change: bool,
    processes: tuple[str | None, int | None, int | None, int | None, float],
    skipped_steps: Sequence[str] = (),
    rewind_to: int | None = None,
) -> int:
    """Trains a config, or compiles it for a preflight, and returns the exit code.

    `processes` are all but the last argument of `distributed.start`. `skipped_steps` are steps such
    as "7-9,12" whose samples are left out; each text counts the steps of a run without those of the
    texts before. `rewind_to` is a step to go back to. InputError: something that was given is
    wrong, or there was no room.
    """
    use_most_memory()
    with Watchdog(workdir) as watchdog, distributed.leaving_at_failure():
        watchdog.enter("rendezvous", allowance=processes[-1] + DEFAULT_SECONDS)
        distributed.start(*processes, watchdog.beat)
        watchdog.met()
        watchdog.enter("start", allowance=math.inf)
        needs_folder = workdir is None and not preflight_only
        experiment = _configured(config, overrides, skipped_steps, needs_folder)
        chosen, opened = _choose(experiment, workdir, allow_config_change)
        if workdir is None or preflight_only:
            _say(f"the run fits: its step takes {preflight(chosen).describe()}")
            _say("the data was not looked at: a start opens and checks it")
            return 0
        while True:
            try:
                is_finished = train_experiment(
                    chosen,
                    workdir,
                    allow_config_change=allow_config_change,
                    given=[path for path, _ in overrides],
                    earlier=opened,
                    watchdog=watchdog,
                    look=_look,
                    rewind_to=rewind_to,
                )
                break
            except Ended as error:
                if distributed.is_primary():
                    print(f"error: {error}", file=sys.stderr)
                return error.exit_code
            except JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Out of the handler, so that nothing holds what was on the devices.
            opened = rewind_to = None
            gc.collect()
            experiment = chosen = _with_smaller_microbatch(experiment, chosen, reason)
        _say(_next_steps(workdir) if is_finished else _GO_ON)
        return 0 if is_finished else EXIT_STOPPED


def _configured(
    config: str,
    overrides: Sequence[tuple[str, str]],
    skipped_steps: Sequence[str],
    needs_folder: bool,
) -> Resolved:
    """Returns the experiment of the command line; InputError where that lacks the run's folder."""
    with distributed.fail_together("config"):
        given = apply_overrides(load_config(config), overrides)
        if needs_folder:
            raise InputError("--workdir is required: the folder of the run")
        experiment = resolve(given)
        for text in skipped_steps:
            experiment = skip_steps(experiment, text.split(","))
        return experiment


def _choose(
    experiment: Resolved, workdir: Path | None, allow_config_change: bool
) -> tuple[Resolved, Opened | None]:
    """Returns the experiment with numbers for what it leaves open, and what was opened for that."""
    if not open_choices(experiment):
        return experiment, None
    with distributed.fail_together("chosen before"):
        found = None if workdir is None else chosen_before(experiment, workdir)
    opened = None
    if found is None:
        if workdir is not None:  # errors of the input come before minutes are spent
            with distributed.fail_together("inputs"):
                opened = open_run(
                    stand_in(experiment), workdir, allow_config_change=allow_config_change
                )
        with distributed.fail_together("auto"):
            found = choose(
                experiment, lambda x, done: _say(compilation(x, done, jax.device_count()))
            )
    chosen, why = found
    _say(why)
    return chosen, opened


def _with_smaller_microbatch(experiment: Resolved, chosen: Resolved, reason: str) -> Resolved:
    """Returns what a run goes on with after an out-of-memory; InputError where that is nothing."""
    smaller = None if jax.process_count() > 1 else step_down(experiment, chosen)
    if smaller is None:
        raise InputError(
            f"out of memory: {reason}; what was saved is kept. Make train.microbatch_size "
            f"smaller (it is {chosen.train.microbatch_size}), or model.remat=full"
        )
    _say(
        f"out of memory: {reason}; going on from what was saved with "
        f"train.microbatch_size={smaller.train.microbatch_size} instead of "
        f"{chosen.train.microbatch_size}"
    )
    return smaller


def _look(program: Program, compiled: jax.stages.Compiled) -> list[str]:
    return audit(program, compiled, count_hosts(jax.devices())).describe()


def _next_steps(workdir: Path) -> str:
    """Returns lines with the commands that look at a finished run, to copy."""
    program, folder = console_command(), shlex.quote(str(workdir))
    return format_facts(
        {
            "done. Next:": [
                f"{program} report {folder}",
                f"{program} evaluate --checkpoint={folder}",
                f"tensorboard --logdir={folder}",
            ]
        }
    )


def _say(line: str) -> None:
    if distributed.is_primary():
        say(line)
