"""A gradient computed twice from the same weights and the same batch, compared bit for bit.

Devices that compute wrongly without an error are rare, and nothing else notices them. The gradient
is that of the training step, before anything is added up between devices: so what differs tells
which device it was. Only checksums leave the devices.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxpretrain.checkpoints.names import checksum, to_named
from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import GIB
from jaxpretrain.devices.memory import memory_limit
from jaxpretrain.models.contract import Batch, Params
from jaxpretrain.parallel import distributed
from jaxpretrain.parallel.mesh import DATA_AXES
from jaxpretrain.parallel.roll_call import in_ranges
from jaxpretrain.train.program import Program, state_bytes
from jaxpretrain.train.step import TrainState, make_sum_gradient, numbered, step_key

_REPEATABLE = {"xla_gpu_deterministic_ops": True}
"""Options without which sums on GPUs may come out differently each time, healthy or not."""


@dataclass(frozen=True)
class Unequal:
    """A group of devices whose gradient differs between two computations."""

    devices: tuple[int, ...]
    """The numbers of the devices; they compute one gradient together."""
    processes: tuple[int, ...]
    names: tuple[str, ...]
    """The arrays that differ."""


@dataclass(frozen=True)
class Recheck:
    """The compiled gradient of a step, of which only checksums are returned."""

    groups: np.ndarray
    """The devices of each group that computes a gradient, [groups, devices of a group]."""
    compiled: jax.stages.Compiled

    def checksums(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
        """Returns the checksums of the gradient by array, uint32 [groups]."""
        return jax.device_get(self.compiled(state.params, batch, (state.rng, state.step)))

    def unequal(self, state: TrainState, batch: Mapping[str, jax.Array]) -> list[Unequal]:
        """Computes the gradient twice; returns the groups of devices for which it differs."""
        return self.compare(self.checksums(state, batch), self.checksums(state, batch))

    def compare(
        self, here: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray]
    ) -> list[Unequal]:
        """Returns the groups of devices whose checksums differ."""
        found = []
        for number, devices in enumerate(self.groups):
            names = tuple(name for name in here if here[name][number] != there[name][number])
            if names:
                ids = tuple(device.id for device in devices)
                processes = tuple(sorted({device.process_index for device in devices}))
                found.append(Unequal(ids, processes, names))
        return found


def make_recheck(program: Program) -> Recheck:
    """Compiles the gradient of a step for comparison.

    Each data-parallel device computes its own, with all weights, where there is room for that; else
    those that share a copy of the weights compute one together. InputError: neither fits.
    """
    mesh = program.layout.mesh
    for over in (DATA_AXES, ("replica",)):
        compiled = _compile(program, over)
        stats: Any = compiled.memory_analysis()
        needed = sum(state_bytes(program)) + stats.temp_size_in_bytes
        limit = memory_limit(mesh.local_devices[0])
        if limit is None or needed <= limit:
            num_groups = int(np.prod([mesh.shape[axis] for axis in over]))
            return Recheck(mesh.devices.reshape(num_groups, -1), compiled)
    raise InputError(
        f"train.recheck_every: a second gradient takes {needed / GIB:.2f} of the {limit / GIB:.2f} "
        "GiB there are; leave it out"
    )


def _compile(program: Program, over: tuple[str, ...]) -> jax.stages.Compiled:
    layout, num_sources = program.layout, len(program.experiment.data.source_names())
    gradient = make_sum_gradient(program.model, layout, program.num_microbatches, num_sources)

    def sums(params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        grads, _, losses = gradient(params, batch, rng)
        return jax.tree.map(checksum, to_named({"gradient": grads, "loss": losses["loss"]}))

    def recheck(
        params: Params, batch: Batch, position: tuple[jax.Array, jax.Array]
    ) -> dict[str, jax.Array]:
        rng, step = position
        rng = step_key(rng, step)
        return layout.apart(sums, over)(params, numbered(batch, layout), rng)

    state = program.state
    jitted = jax.jit(recheck, out_shardings=layout.replicated)
    lowered = jitted.lower(state.params, program.batch, (state.rng, state.step))
    is_gpu = layout.mesh.devices.flat[0].platform == "gpu"
    return lowered.compile(compiler_options=program.options(_REPEATABLE if is_gpu else None))


def describe_unequal(found: list[Unequal]) -> str | None:
    """Returns where gradients differ in words, with the hosts; None where they are equal.

    All processes must call this together where they run together.
    """
    if not found:
        return None
    hosts = distributed.exchange("hosts", socket.gethostname())
    places = []
    for one in found:
        names = ", ".join(one.names[:2]) + (f" and {len(one.names) - 2} more" * bool(one.names[2:]))
        where = ", ".join(dict.fromkeys(hosts[process] for process in one.processes))
        which = "device" if len(one.devices) == 1 else "devices"
        places.append(
            f"on {which} {in_ranges(list(one.devices))} of process "
            f"{in_ranges(list(one.processes))} ({where}), in {names}"
        )
    return "; ".join(places)
