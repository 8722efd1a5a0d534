"""Trains: python -m jaxpretrain.main --config=configs/olmo_nano.py --workdir=runs/nano

Any field of the config can be set on the command line: --config.optim.schedule.peak=1e-3.
The same command on the same folder goes on where it stopped. Started by SLURM, Open MPI,
Kubernetes or on the hosts of a TPU pod, its processes find each other; see docs/distributed.md.
"""

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.describe import describe, format_help
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.paths import as_path
from jaxpretrain.devices.huge_pages import use_huge_pages

if TYPE_CHECKING:  # imported after the flags: it imports JAX
    from jaxpretrain.train.resolved import Resolved

EXIT_JUDGED = 3
EXIT_PREEMPTED = 75


def main(argv: list[str]) -> int:
    """Trains; returns the exit code.

    0 done; 1 the last state could not be saved; 2 bad input; 3 the run judged itself: a loss that
    is no number, or a finding of `monitor.stop_on`; 75 asked to stop, saved, run again to go on.
    """
    rest, overrides = split_overrides(argv)
    parser = Parser(prog="python -m jaxpretrain.main", description="Trains a model.")
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:ARGUMENT")
    parser.add_argument("--workdir", type=as_path, help="folder of the run")
    parser.add_argument("--help_config", action="store_true", help="explain every config field")
    parser.add_argument(
        "--allow_config_change",
        action="store_true",
        help="go on in a folder whose run had another config",
    )
    parser.add_argument(
        "--preflight_only",
        action="store_true",
        help="compile, say what the run takes of the devices' memory, and do not train",
    )
    many = parser.add_argument_group("several processes, where no launcher tells of them")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    many.add_argument("--num_processes", type=int, help="how many there are")
    many.add_argument("--process_id", type=int, help="which of them this is, from 0")
    flags = parser.parse_args(rest)

    from jaxpretrain.devices.memory import use_most_memory
    from jaxpretrain.parallel import distributed  # after the flags: it imports JAX

    use_most_memory()
    if not flags.help_config:
        distributed.start(flags.coordinator, flags.num_processes, flags.process_id)
    with distributed.leaving_at_failure():
        with distributed.fail_together("config"):
            config = apply_overrides(load_config(flags.config), overrides)
            if flags.help_config:
                print(format_help(describe(config)))
                return 0
            if flags.workdir is None and not flags.preflight_only:
                parser.error("--workdir is required: the folder of the run")
            from jaxpretrain.train.resolved import resolve

            config = resolve(config)
        chosen = _choose(config, flags.workdir, flags.allow_config_change)
        if flags.preflight_only:
            from jaxpretrain.train.run import preflight

            _say(f"the run fits: its step takes {preflight(chosen).describe()}")
            _say("the data was not looked at: a start opens and checks it")
            return 0
        workdir: Any = flags.workdir  # which is there: it was asked for
        given = [path for path, _ in overrides]
        changes = {"allow_config_change": flags.allow_config_change, "given": given}
        return _train(config, chosen, workdir, **changes)


def _choose(config: "Resolved", workdir: Path | None, allow_change: bool) -> "Resolved":
    """The config with numbers for what it leaves open."""
    import jax

    from jaxpretrain.parallel import distributed
    from jaxpretrain.planning.auto import choose, chosen_before, open_choices, stand_in
    from jaxpretrain.planning.table import compilation
    from jaxpretrain.train.run import check_inputs

    if not open_choices(config):
        return config
    with distributed.fail_together("chosen before"):
        found = None if workdir is None else chosen_before(config, workdir)
    if found is None:
        if workdir is not None:  # what is wrong is told before minutes are spent
            check_inputs(stand_in(config), workdir, allow_config_change=allow_change)
        with distributed.fail_together("auto"):
            found = choose(config, lambda x, done: _say(compilation(x, done, jax.device_count())))
    chosen, why = found
    _say(why)
    return chosen


def _train(config: "Resolved", chosen: "Resolved", workdir: Path, **options: Any) -> int:
    """Trains; a device that had no room after all makes the microbatch smaller, once.

    Returns the exit code.

    Raises:
      InputError: something that was given is wrong, or there was no room.
    """
    import jax
    from jax.errors import JaxRuntimeError

    from jaxpretrain.devices.memory import is_out_of_memory
    from jaxpretrain.planning.auto import step_down
    from jaxpretrain.train.loop import Alarm, NonFinite, NotSaved
    from jaxpretrain.train.run import train_experiment

    try:
        if train_experiment(chosen, workdir, **options):
            return 0
        _say("stopped and saved; run the same command to go on")
        return EXIT_PREEMPTED
    # These end all processes alike, so that none has to wait for another.
    except NotSaved as error:
        _say(f"error: {error}")
        return 1
    except Alarm as error:
        _say(f"error: {error}")
        return EXIT_JUDGED
    except NonFinite as error:
        _say(
            f"error: {error}; that step is not saved. Go on from the last checkpoint with a lower "
            "peak learning rate or a longer warm-up; --config.train.on_bad_step=skip leaves such "
            "steps out"
        )
        return EXIT_JUDGED
    except JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
    # Out of the handler, so that nothing holds what was on the devices.
    smaller = None if jax.process_count() > 1 else step_down(config, chosen)
    if smaller is None:
        raise InputError(
            f"out of memory: {reason}; what was saved is kept. Make train.microbatch_size "
            f"smaller (it is {chosen.train.microbatch_size}), or model.remat=full"
        )
    gc.collect()
    _say(
        f"out of memory: {reason}; going on from what was saved with "
        f"train.microbatch_size={smaller.train.microbatch_size} instead of "
        f"{chosen.train.microbatch_size}"
    )
    return _train(smaller, smaller, workdir, **options)


def _say(line: str) -> None:
    from jaxpretrain.parallel import distributed

    if distributed.is_primary():
        print(line, file=sys.stderr)


if __name__ == "__main__":
    use_huge_pages()
    run(main)
