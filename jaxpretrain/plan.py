"""Plans a run for a machine that is not present: memory, time and the best batch.

    jaxpretrain plan --config=olmo_nano --target=local
    jaxpretrain plan --config=olmo7b --target=h100-80gb:8 --price=2
    jaxpretrain plan --check configs/*.py

Compiles the training step of the config for the target. Shows the memory that it requires, which
settings are faster, and how long the whole run takes.
"""

import argparse
import json
import sys
from pathlib import Path

from jaxpretrain.config import paths
from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.startup import prepare_environment
from jaxpretrain.display.progress import activity
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.paths import as_path


def main(argv: list[str]) -> int:
    """Exit codes: 0 planned, whether it fits or not; 1 --check found what does not; 2 bad input."""
    rest, given = split_overrides(argv)
    parser = make_parser()
    flags = parser.parse_args(rest)
    _require_consistent(parser, flags, given)
    if flags.target:
        prepare_environment(flags.target)
    with activity("loading JAX"):  # after the flags, and not silently
        from jaxpretrain.planning import console

    if flags.check:
        return console.check_configs(flags.check)
    text, document = console.plan_config(flags, given)
    print(text, file=sys.stderr if flags.json else sys.stdout)
    if flags.output is not None:
        _write(flags.output, json.dumps(document))
    if flags.json:
        print(json.dumps(document))
    return 0


def make_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(prog="jaxpretrain plan", description=__doc__)
    add = parser.add_argument
    add("--config", help="packaged config or FILE.py; --config.PATH=VALUE sets fields")
    add(
        "--target",
        help="machine: h100-80gb:8, 2xtpu-v5p:4x4x4 (two slices), cpu:8, local, ...",
    )
    add(
        "--search",
        default="",
        help="fields that may change, comma-separated: microbatch_size, remat, mesh, attention, "
        "scan_layers, or none (default: all but attention, except those that --config... sets)",
    )
    add("--memory_gib", type=float, help="limit per device (default: what is usable, less 5 %%)")
    add(
        "--max_seconds",
        type=float,
        default=150.0,
        help="seconds after which no further compilation starts",
    )
    add("--num_workers", type=int, help="parallel compilations (default: 1 per core, at most 2)")
    add("--price", type=float, help="price per device-hour, to compute the cost of the run")
    audit = "show what XLA made of the step: products, communication, copies"
    add("--audit", action="store_true", help=audit)
    add("--json", action="store_true", help="print one JSON document on standard output")
    output = "file for the JSON document; a report shows WORKDIR/plan.json"
    add("--output", type=as_path, help=output)
    check = "plan each of these on the hardware in its docstring; exit code 1 if one does not fit"
    add("--check", nargs="+", type=paths.as_local_path, metavar="CONFIG.py", help=check)
    return parser


def _require_consistent(
    parser: Parser, flags: argparse.Namespace, given: list[tuple[str, str]]
) -> None:
    if flags.check and (given or flags.config or flags.target):
        parser.error("--check takes configs as they are, on the hardware they state")
    if not flags.check and not (flags.config and flags.target):
        parser.error("--config and --target are required, or --check")
    for name in ("memory_gib", "max_seconds", "num_workers", "price"):
        if (value := getattr(flags, name)) is not None and value <= 0:
            parser.error(f"--{name}={value:g}: must be positive")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text + "\n")
    except OSError as error:
        raise InputError(f"--output={path}: {error.strerror}") from error


if __name__ == "__main__":
    run(main)
