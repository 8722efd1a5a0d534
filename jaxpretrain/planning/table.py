"""A plan as text for the terminal and as a JSON document."""

from dataclasses import asdict

from jaxpretrain.devices.chips import GIB
from jaxpretrain.display.wording import count_of
from jaxpretrain.planning.compiled import Compiled
from jaxpretrain.planning.planner import Plan
from jaxpretrain.planning.search import Trial
from jaxpretrain.train.resolved import Resolved

_NUM_BUFFERS = 5


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
        "max_microbatch_size": None if best is None else best.size,
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
            **asdict(plan.run_time(shown, price)),
        }
        buffers = [] if shown.compiled is None else shown.compiled.buffers
        answer["largest_buffers"] = [asdict(buffer) for buffer in buffers]
    answer["frontier"] = [_frontier(plan, trial) for trial in plan.frontier]
    return answer


def make_table(plan: Plan, price: float | None) -> str:
    """Returns the lines about a plan for the terminal."""
    return "\n".join([*_head(plan), *_memory(plan), *_frontier_lines(plan), *_run(plan, price)])


def _head(plan: Plan) -> list[str]:
    chip, count = plan.machine.chip, len(plan.machine.devices)
    lines = [
        f"{count} x {chip.device_kind}, {count_of(plan.machine.num_hosts, 'host')}: "
        f"{plan.limit / GIB:.2f} GiB of {chip.memory_bytes / GIB:.2f} a device for the step; "
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
        lines.append(f"  {name:<14}{size / GIB:8.2f}  {_bar(size / plan.limit)}".rstrip())
    lines.append(f"  {'total':<14}{trial.total / GIB:8.2f}  of {plan.limit / GIB:.2f}")
    if plan.eval_bytes is not None:
        lines.append(f"  {'evaluating':<14}{plan.eval_bytes / GIB:8.2f}  held-out loss")
    if trial.compiled is not None and trial.compiled.buffers:
        lines.append("  largest buffers besides the state")
        for buffer in trial.compiled.buffers[:_NUM_BUFFERS]:
            shapes = buffer.shapes if len(buffer.shapes) <= 70 else f"{buffer.shapes[:67]}..."
            lines.append(f"  {'':<14}{buffer.bytes / GIB:8.2f}  {shapes}")
    return lines


def _frontier_lines(plan: Plan) -> list[str]:
    if not plan.trials:
        return []
    unit = plan.trials[0].time.unit
    lines = [
        "",
        "what fits and is faster than all that takes less memory",
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
    run, step = plan.run_time(trial, price), trial.time
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
    return " x ".join(map(str, experiment.mesh.sizes(num_devices)))


def _bar(share: float) -> str:
    return "#" * round(min(share, 1.0) * 40)
