"""Memory, time and the best batch on a machine that need not be there.

python -m jaxpretrain.plan --config=configs/olmo7b.py --target=h100-80gb:8 compiles the training
step of the config for eight H100s and says what it takes, what would be faster, and how long the
whole run would be. --check plans configs on the hardware that their docstrings state.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import as_path
from jaxpretrain.planning.environment import prepare_environment

if TYPE_CHECKING:  # imported after the flags: they import JAX
    from jaxpretrain.planning.planner import Plan
    from jaxpretrain.planning.targets import Target
    from jaxpretrain.train.experiment import Experiment


def main(argv: list[str]) -> int:
    """Exit codes: 0 planned, whether it fits or not; 1 --check found what does not; 2 bad input."""
    rest, given = split_overrides(argv)
    parser = _parser()
    flags = parser.parse_args(rest)
    if flags.check:
        if given or flags.config or flags.target:
            parser.error("--check takes configs as they are, on the hardware they state")
        return _check(flags)
    if not flags.config or not flags.target:
        parser.error("--config and --target are required, or --check")
    prepare_environment(flags.target)  # before what imports JAX
    from jaxpretrain.planning.table import Terminal, document, table
    from jaxpretrain.planning.targets import parse_target

    target = parse_target(flags.target)
    experiment = _load(flags.config, given)

    with Terminal(expected=9) as terminal:
        plan = _plan(flags, experiment, target, [path for path, _ in given], terminal)
    print(table(plan, flags.price), file=sys.stderr if flags.json else sys.stdout)
    answer = json.dumps(document(plan, flags.price))
    if flags.output is not None:
        _write(flags.output, answer)
    if flags.json:
        print(answer)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m jaxpretrain.plan", description=__doc__)
    add = parser.add_argument
    add("--config", help="FILE.py or FILE.py:ARGUMENT; --config.path=value as in training")
    add("--target", help="h100-80gb:8, h100-80gb:2x8, tpu-v5p:8x8x8, cpu:8, local, ...")
    add(
        "--search",
        default="",
        help="what may change, by commas: microbatch_size, remat, mesh, "
        "attention, loss_chunk, scan_layers; default: the first three, unless given; none: nothing",
    )
    add("--memory_gib", type=float, help="of a device, for the step; default: usable less 5 %%")
    add("--max_seconds", type=float, default=150.0, help="after them, nothing more is compiled")
    add("--num_workers", type=int, help="compilations at a time; default: cores, at most 2")
    add("--price", type=float, help="of a device-hour, for the cost of the run")
    add("--json", action="store_true", help="one JSON document on standard output")
    add(
        "--output", type=as_path, help="the document as a file; WORKDIR/plan.json goes into reports"
    )
    add(
        "--check",
        nargs="+",
        type=as_path,
        metavar="CONFIG.py",
        help="plan these, and fail for one that does not fit the hardware that it states",
    )
    return parser


def _load(spec: str, given: list[tuple[str, str]]) -> "Experiment":
    from jaxpretrain.config.files import load_config
    from jaxpretrain.config.overrides import apply_overrides
    from jaxpretrain.train.experiment import resolve

    return resolve(apply_overrides(load_config(spec), given))


def _plan(
    flags: Any, experiment: "Experiment", target: "Target", given: list[str], terminal: Any
) -> "Plan":
    from jaxpretrain.planning.arrangements import dimensions
    from jaxpretrain.planning.machines import open_machine
    from jaxpretrain.planning.planner import make_plan
    from jaxpretrain.planning.pool import open_compiler

    for name in ("memory_gib", "max_seconds", "num_workers", "price"):
        if (value := getattr(flags, name)) is not None and value <= 0:
            raise InputError(f"--{name}={value:g}: must be positive")
    wanted = [] if flags.search == "none" else [n for n in flags.search.split(",") if n]
    searched = () if flags.search == "none" else dimensions(wanted, given)
    machine = open_machine(target, experiment.model.dtype)
    if not machine.compiles:
        extra = f"plan-{machine.chip.platform}"
        terminal.message(
            f"no compiler for {target.name} here: memory is estimated (pip install "
            f"'jaxpretrain[{extra}]' brings it)"
        )
    num_workers = flags.num_workers or min(2, os.cpu_count() or 1)
    limit = None if flags.memory_gib is None else int(flags.memory_gib * 2**30)
    with open_compiler(target, machine, experiment.model.dtype, num_workers) as compiler:
        return make_plan(
            experiment,
            target,
            machine,
            compiler,
            searched=searched,
            limit=limit,
            max_seconds=flags.max_seconds,
            tell=lambda *done: terminal.compiled(*done, len(machine.devices)),
            told=terminal.configured,
        )


def _write(path: Path, text: str) -> None:
    from jaxpretrain.storage.files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text + "\n")
    except OSError as error:
        raise InputError(f"--output={path}: {error.strerror}") from error


def _check(flags: Any) -> int:
    """A line for each config; the code says whether all fit."""
    all_fit = True
    for path in flags.check:
        target = _stated_target(path)
        if target is None:
            print(f"{path}: states no machine", flush=True)
            continue
        command = [sys.executable, "-m", "jaxpretrain.plan", f"--config={path}"]
        command += [f"--target={target}", "--search=none", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"{path}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        plan = json.loads(done.stdout)
        all_fit &= plan["fits"]
        needed, limit = plan["memory_bytes_per_device"], plan["memory_limit_bytes"]
        print(
            f"{path} on {target}: {'fits' if plan['fits'] else 'DOES NOT FIT'}, "
            f"{'?' if needed is None else f'{needed / 2**30:.2f}'} of {limit / 2**30:.2f} GiB a "
            f"device ({plan['source']}, {plan['plan_seconds']:.0f} s)",
            flush=True,
        )
    return 0 if all_fit else 1


def _stated_target(path: Path) -> str | None:
    """What the line "Hardware" of a config's docstring begins with, if that is a machine."""
    from jaxpretrain.planning.targets import parse_target

    try:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    except (OSError, SyntaxError) as error:
        raise InputError(f"--check {path}: {error}") from error
    stated = re.search(r"^Hardware +([\w:-]+\d)", docstring, re.MULTILINE)
    if stated is None:
        return None
    try:
        return parse_target(stated[1]).name
    except InputError:
        return None


if __name__ == "__main__":
    run(main)
