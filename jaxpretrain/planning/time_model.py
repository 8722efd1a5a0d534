"""How long a step and a run take on a machine, by arithmetic alone.

Three resources: arithmetic, memory, and the links between devices. `optimistic` lets all of them
work at their vendor's rates and at once, so the slowest decides. `expected` adds them up, for
kernels mostly run one after another, with arithmetic at the efficiency that explains published
throughputs best. docs/planning.md has formulas, sources and errors.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxpretrain.config.durations import whole_steps
from jaxpretrain.models.costs import Costs
from jaxpretrain.parallel.chips import Chip, Efficiency
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.planning.analytic_memory import weights_on_device
from jaxpretrain.train.experiment import Experiment, pace
from jaxpretrain.train.program import Program

Resource = Literal["compute", "memory", "network"]


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and what they give."""

    optimistic: float
    expected: float
    parts: dict[str, float]
    """What `expected` adds up, in seconds: arithmetic by part, `memory`, `network`."""
    bound_by: Resource
    """What would take longest at the vendor's rates."""
    unit: str
    units: int
    """Tokens or images of the step."""
    num_devices: int
    mfu: float
    """The model FLOPs utilisation in the expected time; attention counts the visible pairs."""

    @property
    def units_per_second(self) -> float:
        """Of all devices, as expected."""
        return self.units / self.expected

    @property
    def units_per_second_per_device(self) -> float:
        """Of one device, as expected."""
        return self.units_per_second / self.num_devices


@dataclass(frozen=True)
class RunTime:
    """A whole run of training steps; evaluation and checkpoints come on top."""

    steps: int
    days: float
    device_hours: float
    cost: float | None
    """In the currency of the price; None without one."""


def estimate_time(
    program: Program, chip: Chip, *, num_hosts: int, efficiency: Efficiency | None = None
) -> StepTime:
    """The time of the program's step on devices of that kind, within milliseconds.

    Args:
      program: what is trained; its devices may be mere descriptions.
      chip: what one of them offers.
      num_hosts: groups of devices with links among them, hosts of GPUs or slices of TPUs.
      efficiency: by default that of the chip.
    """
    experiment, costs = program.experiment, program.model.costs()
    num_devices, examples = program.layout.mesh.size, experiment.train.batch_size
    efficiency = efficiency or chip.efficiency
    peak = chip.peak_flops(experiment.model.dtype)
    arithmetic = {
        part: flops * examples / num_devices / peak
        for part, flops in costs.executed_flops().items()
    }
    memory = _memory_bytes(program, costs) / chip.memory_bandwidth
    network = _network_seconds(program, costs, chip, num_hosts)
    totals: dict[Resource, float] = {
        "compute": sum(arithmetic.values()),
        "memory": memory,
        "network": network,
    }
    shares = {part: efficiency.products for part in arithmetic}
    shares |= {"attention": efficiency.attention}
    parts = {part: seconds / shares[part] for part, seconds in arithmetic.items()}
    parts |= {"memory": memory, "network": network}
    expected = sum(parts.values())
    model_flops = sum(costs.flops_by_part(causal=True).values()) * examples
    unit, per_example = program.model.units_per_example()
    return StepTime(
        optimistic=max(totals.values()),
        expected=expected,
        parts=parts,
        bound_by=max(totals, key=lambda resource: totals[resource]),
        unit=unit,
        units=examples * per_example,
        num_devices=num_devices,
        mfu=model_flops / num_devices / peak / expected,
    )


def run_time(
    experiment: Experiment, step: StepTime, num_devices: int, price: float | None = None
) -> RunTime:
    """The training steps of a resolved experiment; `price` is that of a device-hour.

    Examples of its smaller, early batches take as long as later ones do.
    """
    steps = whole_steps(experiment.train.duration)
    examples = float(pace(experiment).examples(steps))
    seconds = examples * step.expected / experiment.train.batch_size
    device_hours = seconds * num_devices / 3600
    cost = None if price is None else device_hours * price
    return RunTime(steps, seconds / 86400, device_hours, cost)


def _memory_bytes(program: Program, costs: Costs) -> float:
    """To and from the memory of one device in a step, matrix products aside."""
    num_tensor = program.layout.mesh.shape["tensor"]
    itemsize = jnp.dtype(program.experiment.model.dtype).itemsize
    state = program.state
    parameters = sharded_bytes(jax.tree.leaves(state.params))
    moments = sharded_bytes(jax.tree.leaves((state.optimizer, state.ema)))
    examples = program.microbatch_size * program.num_microbatches
    # Read, used and written; gradients are written, read by the norm and read by the update.
    update = 2 * (parameters + moments) + 3 * parameters
    # In each microbatch weights are rounded, and what is added to gradients is read and written.
    numbers = parameters / 4
    rounding = numbers * (4 + itemsize)
    adding = 3 * parameters if program.num_microbatches > 1 else 0
    return (
        examples * costs.traffic.on_device(num_tensor)
        + program.num_microbatches * (rounding + adding)
        + update
    )


def _network_seconds(program: Program, costs: Costs, chip: Chip, num_hosts: int) -> float:
    """Of a step, at the links' rates.

    In each microbatch, in the compute dtype: weights are gathered for the forward and for the
    backward pass, gradients are scattered, and copies of the model add up their shares of them.
    Over the axis `tensor` the residual stream is added up after attention and after the MLP: in the
    forward pass, in the backward pass, and where the forward pass is computed again.
    """
    mesh = program.layout.mesh
    replica, fsdp, tensor = (mesh.shape[axis] for axis in ("replica", "fsdp", "tensor"))
    weights = weights_on_device(program)
    itemsize = jnp.dtype(program.experiment.model.dtype).itemsize
    shards = itemsize * sharded_bytes(jax.tree.leaves(program.state.params)) / 4
    stream = program.microbatch_size * costs.stream.on_device(tensor)
    num_sums = 4 if program.experiment.model.remat in ("none", "dots") else 6
    # Neighbours share the axis `tensor`; then come those of `fsdp`, then copies.
    ring = _Ring(chip, mesh.size // num_hosts)
    return program.num_microbatches * (
        ring.seconds(3 * itemsize * (weights.layers + weights.ends), fsdp, stride=tensor)
        + ring.seconds(2 * shards, replica, stride=tensor * fsdp)
        + ring.seconds(2 * num_sums * stream, tensor, stride=1)
    )


@dataclass(frozen=True)
class _Ring:
    """Gathering among devices that are numbered host by host."""

    chip: Chip
    per_host: int

    def seconds(self, num_bytes: float, size: int, *, stride: int) -> float:
        """For `num_bytes` to reach every device of a group of `size`, one in `stride`.

        A part 1 - 1/size of them comes from others, over the links inside a host; a part 1 -
        1/hosts enters each host once, over the network adapters of the group's devices there.
        Scattering sums takes the same, adding them up everywhere twice that.
        """
        if size == 1:
            return 0.0
        members = max(1, min(size, self.per_host // stride))  # of the group, in one host
        hosts = -(-size // members)
        inside = num_bytes * (1 - 1 / size) / self.chip.link_bandwidth if members > 1 else 0.0
        return max(inside, num_bytes * (1 - 1 / hosts) / (members * self.chip.network_bandwidth))
