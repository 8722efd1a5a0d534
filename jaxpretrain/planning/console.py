"""The plan command after its flags are parsed: plans configs, as text and as a JSON document."""

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jaxpretrain.config.errors import InputError, install
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.devices.chips import GIB
from jaxpretrain.display.progress import Progress
from jaxpretrain.display.wording import count_of
from jaxpretrain.planning.compiled import Compiled, open_compiler
from jaxpretrain.planning.estimates import estimate_run
from jaxpretrain.planning.machines import open_machine, parse_target
from jaxpretrain.planning.planner import Plan, make_plan
from jaxpretrain.planning.search import Trial, choose_dimensions
from jaxpretrain.train.experiment import Resolved, resolve
from jaxpretrain.train.program import chosen_mesh

_MOSTLY_COMPILED = 9
"""The usual number of compilations of a plan, for the progress bar."""
_NUM_BUFFERS = 5


def plan_config(
    flags: Namespace, overrides: Sequence[tuple[str, str]]
) -> tuple[str, dict[str, object]]:
    """Plans a config by the flags of the command; returns the table and the JSON document.

    Each compilation is a line on standard error. InputError: a flag is wrong, or mesh, batch and
    model do not fit together.
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
                f"no compiler for {target.name} here: memory is estimated; to compile, "
                f"{install(f'plan-{machine.chip.platform}')}"
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
    return make_table(plan, flags.price, audit=flags.audit), make_document(plan, flags.price)


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


def compilation(experiment: Resolved, compiled: Compiled, num_devices: int) -> str:
    """Returns a line about one compilation for a machine with `num_devices`."""
    size = experiment.train.microbatch_size
    refused = "" if compiled.memory else ", refused"
    return (
        f"compiled microbatch {'of the whole share' if size is None else size}, "
        f"remat {experiment.model.remat}, mesh {_mesh(experiment, num_devices)}: "
        f"{compiled.total / GIB:.2f} GiB per device{refused} ({compiled.seconds:.0f} s)"
    )


def make_document(plan: Plan, price: float | None) -> dict[str, object]:
    """Returns the JSON document of a plan; the names of its keys end in their units."""
    best, shown = plan.best, plan.shown
    answer: dict[str, object] = {
        "target": plan.machine.target.name,
        "num_devices": len(plan.machine.devices),
        "fits": best is not None,
        "fits_as_configured": plan.fits_as_configured,
        "source": plan.source,
        "memory_limit_bytes": plan.limit,
        "memory_bytes_per_device": None if shown is None else shown.total,
        "memory_parts": None if shown is None else asdict(shown.memory),
        "eval_bytes_per_device": plan.eval_bytes,
        "max_microbatch_size": plan.max_size,
        "overrides": [] if best is None else plan.overrides(best),
        "enough": plan.sufficient_target,
        "plan_seconds": round(plan.seconds, 2),
    }
    if shown is not None:
        step = shown.time
        answer |= {
            f"{step.unit}_per_second": step.units_per_second,
            f"{step.unit}_per_second_per_device": step.units_per_second_per_device,
            "step_seconds": step.expected,
            "step_seconds_optimistic": step.optimistic,
            "step_parts_seconds": step.parts,
            "mfu": step.mfu,
            "bound_by": step.bound_by,
            **asdict(estimate_run(shown.experiment, step, price)),
        }
        buffers = [] if shown.compiled is None else shown.compiled.buffers
        answer["largest_buffers"] = [asdict(buffer) for buffer in buffers]
        audited = shown.compiled and shown.compiled.audit
        answer["audit"] = None if audited is None else asdict(audited)
    answer["frontier"] = [_frontier(plan, trial) for trial in plan.frontier]
    return answer


def make_table(plan: Plan, price: float | None, *, audit: bool = False) -> str:
    """Returns the lines about a plan for the terminal, with the audit of its step if asked."""
    parts = [_head(plan), _memory(plan), _audit(plan) if audit else []]
    parts += [_frontier_lines(plan), _run(plan, price)]
    return "\n".join(line for part in parts for line in part)


def _head(plan: Plan) -> list[str]:
    chip, count = plan.machine.chip, len(plan.machine.devices)
    group = "slice" if chip.platform == "tpu" else "host"
    lines = [
        f"{count} x {chip.device_kind}, {count_of(plan.machine.num_hosts, group)}: "
        f"{plan.limit / GIB:.2f} GiB of {chip.memory_bytes / GIB:.2f} per device for the step; "
        f"memory is {plan.source}",
    ]
    if plan.configured is not None:
        verdict = "fits" if plan.fits_as_configured else "DOES NOT FIT"
        known = "" if plan.configured.compiled else " (estimated)"
        lines.append(
            f"as configured: {verdict}, {plan.configured.total / GIB:.2f} GiB per device{known}"
        )
    if plan.best is None:
        more = f"; {plan.sufficient_target} would do (estimated)" if plan.sufficient_target else ""
        lines.append(f"nothing that was searched fits{more}")
    return lines


def _memory(plan: Plan) -> list[str]:
    trial = plan.shown
    if trial is None:
        return []
    lines = [
        "",
        f"memory with microbatch {trial.size}, remat {trial.experiment.model.remat}, mesh "
        f"{_mesh(trial.experiment, len(plan.machine.devices))}; GiB per device",
    ]
    for name, size in asdict(trial.memory).items():
        bar = "#" * round(min(size / plan.limit, 1.0) * 40)
        lines.append(f"  {name:<14}{size / GIB:8.2f}  {bar}".rstrip())
    lines.append(f"  {'total':<14}{trial.total / GIB:8.2f}  of {plan.limit / GIB:.2f}")
    if plan.eval_bytes is not None:
        lines.append(f"  {'evaluating':<14}{plan.eval_bytes / GIB:8.2f}  held-out loss")
    if trial.compiled is not None and trial.compiled.buffers:
        lines.append("  largest buffers besides the state")
        for buffer in trial.compiled.buffers[:_NUM_BUFFERS]:
            shapes = buffer.shapes if len(buffer.shapes) <= 70 else f"{buffer.shapes[:67]}..."
            lines.append(f"  {'':<14}{buffer.bytes / GIB:8.2f}  {shapes}")
    return lines


def _audit(plan: Plan) -> list[str]:
    trial = plan.shown
    audited = trial and trial.compiled and trial.compiled.audit
    if audited is None:
        return ["", "no audit: the step is not compiled"]
    return ["", "audit of that step, per device", *(f"  {line}" for line in audited.listed())]


def _frontier_lines(plan: Plan) -> list[str]:
    if not plan.trials:
        return []
    unit = plan.trials[0].time.unit
    lines = [
        "",
        "Pareto front: no listed choice is beaten in both speed and memory",
        f"  microbatch  remat      mesh (replica x fsdp x tensor)      GiB  "
        f"{unit + '/s per device':>18}     MFU  bound by",
    ]
    for trial in plan.frontier:
        note = "more may fit" if trial.compiled else "estimated"
        rate = trial.time.units_per_second_per_device
        mesh = _mesh(trial.experiment, len(plan.machine.devices))
        lines.append(
            f"  {trial.size:>10}  {trial.experiment.model.remat:<9}  {mesh:<30}  "
            f"{trial.total / GIB:7.2f}  {rate:>18,.0f}  {trial.time.mfu:6.1%}  "
            f"{trial.time.bound_by:<8} {'' if trial.is_largest else note}".rstrip()
        )
    return lines


def _run(plan: Plan, price: float | None) -> list[str]:
    trial = plan.best
    if trial is None:
        return []
    run, step = estimate_run(trial.experiment, trial.time, price), trial.time
    cost = "" if run.cost is None else f", cost {run.cost:,.0f}"
    return [
        "",
        f"the run: {run.steps:,} steps of {step.expected:.3g} s (at best {step.optimistic:.3g}), "
        f"{step.units_per_second:,.0f} {step.unit}/s",
        f"         {run.days:,.1f} days, {run.device_hours:,.0f} device-hours{cost}; evaluation "
        "and saves aside",
        "",
        f"recommended: {' '.join(plan.overrides(trial)) or 'the config as it stands'}",
    ]


def _frontier(plan: Plan, trial: Trial) -> dict[str, object]:
    return {
        "overrides": plan.overrides(trial),
        "microbatch_size": trial.size,
        "memory_bytes_per_device": trial.total,
        "source": "analytic" if trial.compiled is None else "compiled",
        "is_largest": trial.is_largest,
        "step_seconds": trial.time.expected,
        f"{trial.time.unit}_per_second": trial.time.units_per_second,
        "bound_by": trial.time.bound_by,
    }


def _mesh(experiment: Resolved, num_devices: int) -> str:
    return " x ".join(map(str, chosen_mesh(experiment).sizes(num_devices)))
