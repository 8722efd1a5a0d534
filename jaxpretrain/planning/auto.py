"""Replaces `auto` in a config, before the run, by the fastest choice that fits the devices at hand.

The choice is saved with the run. A run that goes on takes it again, so that it goes on bit for bit.
The global batch stays the same: smaller microbatches are accumulated.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import from_dict, to_dict
from jaxpretrain.devices.chips import GIB, Chip
from jaxpretrain.devices.startup import keep_compiled
from jaxpretrain.parallel.distributed import exchange
from jaxpretrain.parallel.mesh import Mesh, count_slices
from jaxpretrain.planning.compiled import InProcessCompiler, OnCompiled
from jaxpretrain.planning.machines import Machine, open_machine, parse_target
from jaxpretrain.planning.search import (
    MICROBATCH,
    REMAT,
    Arrangement,
    Trial,
    list_arrangements,
    open_choices,
    search,
)
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import chosen_mesh
from jaxpretrain.train.workdir import trained_here

_MAX_SECONDS = 180.0


def stand_in(experiment: Resolved) -> Resolved:
    """Returns the experiment with the least that auto could choose, for checks before it does."""
    least = replace(
        experiment,
        model=replace(experiment.model, remat="full"),
        train=replace(experiment.train, microbatch_size=1),
        mesh=Mesh(replica=count_slices(jax.devices())),
    )
    return _as(experiment, least)


def chosen_before(experiment: Resolved, workdir: Path) -> tuple[Resolved, str] | None:
    """Returns the run's earlier choice on devices like these, if any, and a line about it."""
    before = trained_here(workdir)
    if before is None:
        return None
    return _as(experiment, before), f"auto: {_named(experiment, before)}, as before"


def choose(experiment: Resolved, on_compiled: OnCompiled) -> tuple[Resolved, str]:
    """Returns the experiment with its choices made, and a line why; InputError: nothing fits."""
    keep_compiled()
    machine = _machine(experiment.model.dtype)
    start = time.monotonic()
    # Among several processes, none may stop searching before the others.
    deadline = start + _MAX_SECONDS if jax.process_count() == 1 else math.inf
    limit, compiler = machine.limit, InProcessCompiler(machine, on_compiled)
    found = list_arrangements(experiment, machine, open_choices(experiment))
    trials = search(found, limit, compiler, goal="fastest", deadline=deadline)
    if not trials:
        least = min(a.memory(a.sizes[0]).total for a in found)
        raise InputError(
            f"auto: nothing fits the {limit / GIB:.2f} GiB of a device; one example at a time "
            f"takes about {least / GIB:.2f} GiB. python -m jaxpretrain.plan finds a machine"
        )
    best = trials[0]
    reason = _reason(found, best, machine) if experiment.mesh == "auto" else ""
    return _as(experiment, best.experiment), (
        f"auto: {_named(experiment, best.experiment)}, {reason}{best.total / GIB:.2f} of "
        f"{limit / GIB:.2f} GiB per device (found in {time.monotonic() - start:.0f} s)"
    )


def step_down(experiment: Resolved, chosen: Resolved) -> Resolved | None:
    """Returns the chosen experiment with the next smaller microbatch, or None if there is none.

    Only a microbatch that was `auto` in the config is changed.
    """
    size = chosen.train.microbatch_size
    if experiment.train.microbatch_size != "auto" or not isinstance(size, int) or size == 1:
        return None
    smaller = max(d for d in range(1, size) if size % d == 0)
    return replace(chosen, train=replace(chosen.train, microbatch_size=smaller))


def _machine(dtype: str) -> Machine:
    """Opens the devices at hand, with the first process's rates, so that all choose alike."""
    machine = open_machine(parse_target("local"), dtype)
    seen = exchange("chip", json.dumps(to_dict(machine.chip)))[0]
    return replace(machine, chip=from_dict(Chip, json.loads(seen)))


def _as(experiment: Resolved, chosen: Resolved) -> Resolved:
    names = open_choices(experiment)
    model, train = experiment.model, experiment.train
    if REMAT in names:
        model = replace(model, remat=chosen.model.remat)
    if MICROBATCH in names:
        train = replace(train, microbatch_size=chosen.train.microbatch_size)
    mesh = chosen.mesh if "mesh" in names else experiment.mesh
    return replace(experiment, model=model, train=train, mesh=mesh)


def _named(experiment: Resolved, chosen: Resolved) -> str:
    mesh = " x ".join(map(str, chosen_mesh(chosen).sizes(jax.device_count())))
    values = {
        MICROBATCH: chosen.train.microbatch_size,
        REMAT: chosen.model.remat,
        "mesh": f"{mesh} (replica x fsdp x tensor)",
    }
    return ", ".join(f"{name}={values[name]}" for name in open_choices(experiment))


def _reason(found: Sequence[Arrangement], best: Trial, machine: Machine) -> str:
    """Returns the part of a line that says why the planner ranks a mesh first."""
    meshes = len({tuple(a.program.layout.mesh.shape.values()) for a in found})
    slices = count_slices(machine.devices)
    first = f"the fastest of {meshes} meshes" if meshes > 1 else "the only mesh"
    copies = f", replica is the number of slices ({slices})" if slices > 1 else ""
    return (
        f"{first} by estimate ({best.time.expected:.3g} s a step, bound by "
        f"{best.time.bound_by}){copies}, "
    )
