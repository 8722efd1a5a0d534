"""The flags of the training command, which launchers read too before they start it elsewhere."""

import textwrap

from jaxpretrain.config.command import EXIT_STALLED, EXIT_STOPPED, Parser, list_exit_codes
from jaxpretrain.config.files import packaged
from jaxpretrain.storage.paths import as_path

START_SECONDS = 300.0
"""Seconds that the processes of a run wait for one another when they start, unless told."""

_EXIT_CODES = {
    0: "the run is complete",
    1: "a failure; one line where the disk is full or a process did not come",
    2: "a flag, a setting or the data is wrong; nothing was lost",
    3: "stopped itself: a loss is not finite, or a finding of monitor.stop_on",
    EXIT_STOPPED: "asked to stop, and saved; the same command goes on from there",
    EXIT_STALLED: "stood still (monitor.stall); WORKDIR/stacks says where, the same goes on",
    130: "ended at once by a second Ctrl-C; the newest checkpoint stays",
}
"""Exit code of the command -> its meaning."""


def make_parser(description: str) -> Parser:
    """Returns the parser of the training command; the description stands in its help."""
    parser = Parser(
        prog="jaxpretrain train",
        usage="%(prog)s --config=CONFIG --workdir=DIR [FLAGS]\n"
        "                         [--config.PATH=VALUE ...]",
        description=description,
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
    add(
        "--skip_steps",
        action="append",
        default=[],
        metavar="FIRST-LAST,...",
        help="leave out the samples of these steps; given again: of the run without those before",
    )
    add(
        "--rewind_to",
        type=int,
        metavar="STEP",
        help="go on from the older checkpoint of this step; newer ones move to WORKDIR/abandoned",
    )
    many = parser.add_argument_group("several processes that no launcher starts")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0")
    many.add_argument("--num_processes", type=int, help="the number of processes")
    many.add_argument("--process_id", type=int, help="the number of this process, from 0")
    start = parser.add_argument_group("how several processes find each other")
    port = "the port of process 0, where a launcher names its host"
    start.add_argument("--coordinator_port", type=int, metavar="PORT", help=port)
    seconds = "seconds after which the processes that are missing are named, and the others end"
    start.add_argument(
        "--start_timeout", type=float, default=START_SECONDS, metavar="SECONDS", help=seconds
    )
    return parser


def _epilog() -> str:
    names = textwrap.fill(", ".join(packaged()), 76, break_on_hyphens=False)
    return (
        "settings:\n  --config.PATH=VALUE  set any field of the config, for example\n"
        "                       --config.optim.schedule.peak=1e-3\n\n"
        f"packaged configs:\n{textwrap.indent(names, '  ')}\n\n"
        f"{list_exit_codes(_EXIT_CODES)}"
    )
