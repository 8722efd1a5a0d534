r"""Compares settings of a config: plans the runs, trains them with several seeds, and answers.

    jaxpretrain sweep --config=olmo_nano --workdir=runs/qk \
        --grid.model.qk_norm=true,false
    jaxpretrain sweep --config=olmo_nano --workdir=runs/lr \
        --random=8 --range.optim.schedule.peak=1e-3..3e-2 --seeds=5 --jobs=2

The same command goes on with a sweep that was stopped; more seeds, arms or values extend it.
"""

import json
import os

from jaxpretrain.config.command import EXIT_STOPPED, Parser, list_exit_codes, run
from jaxpretrain.config.paths import as_local_path
from jaxpretrain.devices.gpus import named_gpus
from jaxpretrain.devices.startup import prepare_environment
from jaxpretrain.display.progress import activity
from jaxpretrain.launch.flags import add_runs_flags, require_runs_flags
from jaxpretrain.sweeps.parsing import split_sweep

_EXIT_CODES = {
    0: "all runs are complete",
    1: "a run failed; the others are complete",
    2: "a flag, a setting or the data is wrong, or the arms are not equal",
    EXIT_STOPPED: "stopped; the same command goes on",
}
"""Exit code of the command -> its meaning."""


def main(argv: list[str]) -> int:
    """Runs a sweep, or plans it; returns an exit code of `_EXIT_CODES`."""
    rest, items = split_sweep(argv)
    parser = make_parser()
    flags = parser.parse_args(rest)
    if flags.config and flags.sweep:
        parser.error("--sweep says which config it varies: leave out --config")
    if not (flags.config or flags.sweep):
        parser.error("give --config and what is varied, or --sweep")
    if flags.workdir is None and not flags.plan_only:
        parser.error("--workdir is required: the folder of the sweep; or --plan_only")
    require_runs_flags(flags, rest)
    environment, gpus = dict(os.environ), named_gpus(os.environ)
    # The runs get the accelerators, and this process only plans for them.
    prepare_environment("cpu" if flags.target in (None, "local") else flags.target)
    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.sweeps.console import run_sweep

    code, document = run_sweep(flags, items, environment, gpus)
    if flags.json:
        print(json.dumps(document))
    return code


def make_parser() -> Parser:
    """Returns the parser of the command, without the flags that name fields of the config."""
    parser = Parser(
        prog="jaxpretrain sweep",
        usage="%(prog)s --config=CONFIG --workdir=DIR --grid.PATH=A,B [FLAGS]",
        description=__doc__,
        epilog=f"{_VARIED}\n\n{list_exit_codes(_EXIT_CODES)}",
    )
    add = parser.add_argument
    add("--config", metavar="CONFIG", help="the config, as in training")
    add("--sweep", metavar="FILE", help="a file with get_sweep(), or a packaged sweep")
    add("--workdir", type=as_local_path, metavar="DIR", help="the folder of the sweep")
    add("--seeds", type=int, help="runs of each arm: the seed of the config and those after it")
    add("--random", type=int, default=0, help="arms that are taken from the ranges")
    add("--control", metavar="ARM", help="the arm that the others are compared with")
    add(
        "--equal",
        choices=("tokens", "flops", "time"),
        help="gives all arms durations with the control's tokens (or images), FLOPs or time",
    )
    add("--unequal", action="store_true", help="go on where arms differ in tokens or evaluation")
    add("--target", metavar="MACHINE", help="machine to plan for, as in plan; compiles the steps")
    add("--plan_only", action="store_true", help="say what the runs take, and exit")
    add_runs_flags(parser)
    return parser


_VARIED = """\
what is varied:
  --grid.PATH=A,B,C        an arm for each value, or combination of values
  --range.PATH=LOW..HIGH   --random=N arms from a range (:log, :linear)
  --arm=NAME               an arm with the --config. flags up to the next --arm
  --tune.PATH=A,B,C        each arm is compared at its own best of these
  --config.PATH=VALUE      a setting of all arms, before the first --arm
"""


if __name__ == "__main__":
    run(main)
