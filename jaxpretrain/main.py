"""Trains a model, or goes on with a run where it stopped.

    python -m jaxpretrain.main --config=olmo_nano --workdir=runs/nano
    python -m jaxpretrain.main --config=my/config.py --workdir=runs/mine --config.seed=1

Started by SLURM, Open MPI, Kubernetes or on the hosts of a TPU pod, its processes find each other.
"""

import textwrap

from jaxpretrain.config.command import (
    EXIT_STOPPED,
    Parser,
    list_exit_codes,
    run,
    split_overrides,
)
from jaxpretrain.config.describe import describe, format_help
from jaxpretrain.config.files import load_config, packaged
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.paths import as_path
from jaxpretrain.devices.startup import use_huge_pages

_EXIT_CODES = {
    0: "the run is complete",
    1: "the last state could not be saved",
    2: "a flag, a setting or the data is wrong; nothing was lost",
    3: "stopped itself: a loss is not finite, or a finding of monitor.stop_on",
    EXIT_STOPPED: "asked to stop, and saved; the same command goes on from there",
}
"""Exit code of the command -> its meaning."""


def main(argv: list[str]) -> int:
    """Trains, or prints help; returns an exit code of `_EXIT_CODES`."""
    rest, overrides = split_overrides(argv)
    flags = make_parser().parse_args(rest)
    if flags.help_config is not None:
        config = apply_overrides(load_config(flags.config), overrides)
        print(format_help(describe(config), flags.help_config))
        return 0
    from jaxpretrain.planning.launch import launch  # after the flags: it imports JAX

    return launch(
        flags.config,
        overrides,
        flags.workdir,
        preflight_only=flags.preflight_only,
        allow_config_change=flags.allow_config_change,
        processes=(flags.coordinator, flags.num_processes, flags.process_id),
    )


def make_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(
        prog="python -m jaxpretrain.main",
        usage="%(prog)s --config=CONFIG --workdir=DIR [--config.PATH=VALUE ...] [FLAGS]",
        description=__doc__,
        epilog=_epilog(),
    )
    add = parser.add_argument
    add(
        "--config",
        required=True,
        metavar="CONFIG",
        help="a packaged config, or the path of a file of your own; CONFIG:ARGUMENT where the "
        "config takes an argument",
    )
    add("--workdir", type=as_path, metavar="DIR", help="the folder of the run")
    add(
        "--help_config",
        nargs="?",
        const="",
        metavar="PATH",
        help="explain every field of the config, or those below PATH, such as optim, and exit",
    )
    add(
        "--allow_config_change",
        action="store_true",
        help="go on with a run whose config was different",
    )
    add(
        "--preflight_only",
        action="store_true",
        help="compile the step, print the memory that it needs, and exit",
    )
    many = parser.add_argument_group("several processes that no launcher starts")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0")
    many.add_argument("--num_processes", type=int, help="the number of processes")
    many.add_argument("--process_id", type=int, help="the number of this process, from 0")
    return parser


def _epilog() -> str:
    names = textwrap.fill(", ".join(packaged()), 76, break_on_hyphens=False)
    return (
        "settings:\n  --config.PATH=VALUE  set any field of the config, for example\n"
        "                       --config.optim.schedule.peak=1e-3\n\n"
        f"packaged configs:\n{textwrap.indent(names, '  ')}\n\n"
        f"{list_exit_codes(_EXIT_CODES)}"
    )


if __name__ == "__main__":
    use_huge_pages()
    run(main)
