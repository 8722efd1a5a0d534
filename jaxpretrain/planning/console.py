"""The plan command after its flags are parsed: plans configs and prints the progress."""

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.devices.chips import GIB
from jaxpretrain.display.progress import Progress
from jaxpretrain.planning.arrangements import choose_dimensions
from jaxpretrain.planning.compiled import Compiled
from jaxpretrain.planning.compilers import open_compiler
from jaxpretrain.planning.machines import open_machine
from jaxpretrain.planning.planner import make_plan
from jaxpretrain.planning.search import Trial
from jaxpretrain.planning.table import compilation, make_document, make_table
from jaxpretrain.planning.targets import parse_target
from jaxpretrain.train.resolved import Resolved, resolve

_MOSTLY_COMPILED = 9
"""The usual number of compilations of a plan, for the progress bar."""


def plan_config(
    flags: Namespace, overrides: Sequence[tuple[str, str]]
) -> tuple[str, dict[str, object]]:
    """Plans a config by the flags of the command; returns the table and the JSON document.

    Each compilation is a line on standard error.

    Raises:
      InputError: a flag is wrong, or mesh, batch and model do not fit together.
    """
    target = parse_target(flags.target)
    experiment = resolve(apply_overrides(load_config(flags.config), overrides))
    dtype = experiment.model.dtype
    wanted = [name for name in flags.search.split(",") if name]
    given = [path for path, _ in overrides]
    searched = () if flags.search == "none" else choose_dimensions(wanted, given)
    machine = open_machine(target, dtype)
    num_devices = len(machine.devices)
    num_compiled = itertools.count(1)
    with Progress(_MOSTLY_COMPILED, "compiled", stays=False) as progress:

        def on_compiled(experiment: Resolved, compiled: Compiled) -> None:
            progress.message(compilation(experiment, compiled, num_devices))
            progress.update(next(num_compiled))

        def on_configured(trial: Trial, is_fitting: bool) -> None:
            verdict = "fits" if is_fitting else "does not fit"
            total = f"{trial.total / GIB:.2f} GiB per device"
            progress.message(f"as configured it {verdict}: {total}")

        if not machine.compiles:
            progress.message(
                f"no compiler for {target.name} here: memory is estimated (pip install "
                f"'jaxpretrain[plan-{machine.chip.platform}]' brings it)"
            )
        num_workers = flags.num_workers or min(2, os.cpu_count() or 1)
        with open_compiler(machine, dtype, num_workers, on_compiled) as compiler:
            plan = make_plan(
                experiment,
                machine,
                compiler,
                searched=searched,
                limit=None if flags.memory_gib is None else int(flags.memory_gib * GIB),
                max_seconds=flags.max_seconds,
                on_configured=on_configured,
            )
    return make_table(plan, flags.price), make_document(plan, flags.price)


def check_configs(paths: Sequence[Path]) -> int:
    """Plans each config on the hardware that it states and prints a line about it.

    Returns the exit code of the command: 1 where a config does not fit, 0 where all do.
    """
    all_fit = True
    for path in paths:
        target = _stated_target(path)
        if target is None:
            print(f"{path}: states no machine", flush=True)
            continue
        # Each in a process of its own: how many devices JAX has is settled when it starts.
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
            f"{'?' if needed is None else f'{needed / GIB:.2f}'} of {limit / GIB:.2f} GiB a "
            f"device ({plan['source']}, {plan['plan_seconds']:.0f} s)",
            flush=True,
        )
    return 0 if all_fit else 1


def _stated_target(path: Path) -> str | None:
    """Returns the machine that the line "Hardware" of a config's docstring begins with, if any."""
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    except (OSError, SyntaxError) as error:
        raise InputError(f"--check {path}: {error}") from error
    stated = re.search(r"^Hardware +([\w:-]+\d)", docstring, re.MULTILINE)
    try:
        return parse_target(stated[1]).name if stated else None
    except InputError:
        return None
