r"""Trains a ladder of small runs, fits a scaling law to them, predicts a larger run.

    jaxpretrain scaling --config=olmo_ladder --sizes=20m,60m,150m \
        --multiples=1,2,5 --workdir=runs/ladder --config.data.root=TOKEN_FILES
    jaxpretrain scaling runs/ladder
    jaxpretrain scaling runs/ladder --predict=olmo_ladder:750m \
        --workdir=runs/750m
    jaxpretrain scaling --points=table.csv \
        --columns=n=params,d=tokens,loss=loss

The law is E + A / N^alpha + B / D^beta, with N parameters (without the embedding) and D tokens.
"""

import json
import os
from argparse import Namespace

from jaxpretrain.config.command import EXIT_STOPPED, Parser, list_exit_codes, run, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import as_local_path
from jaxpretrain.devices.gpus import named_gpus
from jaxpretrain.devices.startup import prepare_environment
from jaxpretrain.display.progress import activity
from jaxpretrain.launch.flags import add_runs_flags, foreign, require_runs_flags

_EXIT_CODES = {
    0: "done",
    1: "a run of the ladder failed; the others are complete",
    2: "a flag, a table or a run is wrong, or the points determine no law",
    EXIT_STOPPED: "stopped; the same command goes on",
}
"""Exit code of the command -> its meaning."""
_OF_FITS = (
    *("drop_highest", "metric", "optima", "budgets", "bootstraps"),
    *("predict", "workdir", "hindcast", "output"),
)
_FLAGS = {
    "--sizes=LIST": (
        *("sizes", "config", "multiples", "budgets", "rule", "target", "plan_only"),
        *("workdir", "jobs", "launcher", "retry_failed"),
    ),
    "--points=FILE": ("points", "columns", "where", "tasks", "last", *_OF_FITS),
    "folders of runs": ("last", *_OF_FITS),
    "--optima": (
        *("optima", "points", "columns", "where"),
        *("drop_highest", "metric", "bootstraps", "output"),
    ),
}
"""Each use of the command, by what it is given -> the names of the flags that the use reads."""


def main(argv: list[str]) -> int:
    """Trains a ladder, or fits laws and prints what follows; returns a code of `_EXIT_CODES`."""
    rest, overrides = split_overrides(argv)
    flags = make_parser().parse_args(rest)
    _require_sensible(flags, rest)
    environment, gpus = dict(os.environ), named_gpus(os.environ)
    # Runs of a ladder get the accelerators; this process only plans and fits.
    prepare_environment("cpu" if flags.target in (None, "local") else flags.target)
    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.laws.console import run_ladder, tell_scaling

    if flags.sizes:
        code, document = run_ladder(flags, overrides, environment, gpus)
        if flags.json:
            print(json.dumps(document))
        elif flags.launcher == "local" and not (code or flags.plan_only):
            print(f"fit a law to it: jaxpretrain scaling {flags.workdir}")
        return code
    print(tell_scaling(flags, overrides))
    return 0


def _require_sensible(flags: Namespace, items: list[str]) -> None:
    """Raises InputError where flags, given as `items`, say nothing, or do not fit together."""
    if empty := [x for x in items if x.startswith("--") and x.partition("=")[1:] == ("=", "")]:
        raise InputError(f"{empty[0]} has no value")
    for name in ("bootstraps", "last"):
        if getattr(flags, name) < 1:
            raise InputError(f"--{name}={getattr(flags, name)}: must be positive")
    if not (flags.sizes or flags.points or flags.folders):
        raise InputError("give the folders of runs, --points=FILE with --columns, or --sizes=LIST")
    if flags.folders and (flags.sizes or flags.points):
        other = "--sizes=LIST" if flags.sizes else "--points=FILE"
        raise InputError(f"{flags.folders[0]}: folders of runs do not go with {other}")
    what = "--sizes=LIST" if flags.sizes else "--points=FILE" if flags.points else "folders of runs"
    for place in (what, "--optima") if flags.optima else (what,):
        for name, owners in foreign(items, place, _FLAGS):
            wanted = " or ".join(owner for owner in owners if owner != "--optima")
            raise InputError(f"--{name} goes with {wanted}, not with {place}")
    require_runs_flags(flags, items)


def make_parser() -> Parser:
    """Returns the parser of the command, without the flags that name fields of the config."""
    parser = Parser(
        prog="jaxpretrain scaling",
        usage="%(prog)s DIR... | --points=FILE | --sizes=LIST [FLAGS]",
        description=__doc__,
        epilog=list_exit_codes(_EXIT_CODES),
    )
    add = parser.add_argument
    folder = "folder of a run, or a folder that holds runs"
    add("folders", metavar="DIR", type=as_local_path, nargs="*", help=folder)
    add("--points", type=as_local_path, metavar="FILE", help="table of points, .csv or .jsonl")
    columns = "its columns: n=NAME,d=NAME,loss=NAME; c=NAME for FLOPs gives D = C / 6N"
    add("--columns", metavar="LIST", help=columns)
    where = "rows to take, such as 'tokens>=120e9' or length=1xC,2xC; repeatable"
    add("--where", action="append", default=[], metavar="TEST", help=where)
    add("--drop_highest", type=int, default=0, help="leave out so many of the highest losses")
    tasks = "task of the table: NAME=BITS_PER_BYTE_COLUMN:ACCURACY_COLUMN; repeatable"
    add("--tasks", action="append", default=[], metavar="TASK", help=tasks)
    metric = "loss of the runs (default: their first held-out one)"
    add("--metric", metavar="NAME", help=metric)
    add("--last", type=int, default=1, help="take the mean of so many last values")
    add("--optima", action="store_true", help="the points are the best of their budgets already")
    budgets = "FLOPs, such as 1e15,3e15: to tell the best sizes for, or to run each size at"
    add("--budgets", metavar="LIST", help=budgets)
    add("--bootstraps", type=int, default=1000, help="resamplings of the points, for intervals")
    predict = "config of a larger run, or n=13e9,d=5e12; --config.PATH=VALUE changes the config"
    add("--predict", metavar="CONFIG", help=predict)
    workdir = "folder of the run to predict, for prediction.json; or of the ladder"
    add("--workdir", type=as_local_path, metavar="DIR", help=workdir)
    add("--hindcast", action="store_true", help="go on where that run has begun, and mark it")
    add("--config", metavar="CONFIG", help="config of a ladder, without its argument")
    add("--sizes", metavar="LIST", help="train a ladder of these sizes of the config")
    add("--multiples", metavar="LIST", help="lengths, relative to the config's own (default: 1)")
    rule = "rule of batch and learning rate, by its name in the config, such as step_law"
    add("--rule", default="", metavar="NAME", help=rule)
    add("--target", metavar="MACHINE", help="machine to plan the ladder for, as in plan")
    add("--plan_only", action="store_true", help="say what the ladder takes, and exit")
    output = "HTML page to write (default: scaling.html in the first DIR; none for a table)"
    add("--output", type=as_local_path, metavar="FILE", help=output)
    add_runs_flags(parser)
    return parser


if __name__ == "__main__":
    run(main)
