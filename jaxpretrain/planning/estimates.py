"""The memory and the time of a step on a machine, by arithmetic alone.

Memory: without a compiler this is the answer; with one, it says what is worth compiling. State and
batch are exact. Activations peak in the loss or in the backward pass of the largest layer.

Time: arithmetic, memory and the links between devices take their parts. docs/planning.md has the
formulas, their sources and their errors.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.devices.chips import Chip
from jaxpretrain.models.costs import Costs
from jaxpretrain.models.stack import place_of
from jaxpretrain.optim.layers import name_of
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import Memory, Program, num_gradients, state_bytes

Resource = Literal["compute", "memory", "network"]


@dataclass(frozen=True)
class StepTime:
    """The seconds of one optimizer step, and the rates that follow."""

    optimistic: float
    """Seconds at the vendor's rates, all resources working at once: the slowest decides."""
    expected: float
    """Seconds at the rates that programs reach, one resource after another, as kernels mostly run;
    arithmetic has the efficiency that explains published throughputs best."""
    parts: dict[str, float]
    """The summands of `expected` in seconds: arithmetic by part, `memory`, and what products do not
    hide of `network`."""
    bound_by: Resource
    """The resource that needs the most time at the vendor's rates."""
    unit: str
    units: int
    """Tokens or images of the step."""
    num_devices: int
    mfu: float
    """The model FLOPs utilisation in the expected time; attention counts the visible pairs."""

    @property
    def units_per_second(self) -> float:
        """The expected rate of all devices together."""
        return self.units / self.expected

    @property
    def units_per_second_per_device(self) -> float:
        """The expected rate of one device."""
        return self.units_per_second / self.num_devices


@dataclass(frozen=True)
class RunTime:
    """The time of all training steps of a run; evaluation and checkpoints come on top."""

    steps: int
    days: float
    device_hours: float
    cost: float | None
    """The cost in the currency of the price; None without a price."""


def estimate_memory(program: Program) -> Memory:
    """Estimates the memory of one device at the peak of the program's step.

    The error against XLA's compilers is 10 to 20 %, see docs/planning.md.
    """
    parameters, optimizer = state_bytes(program)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        gradients=parameters * num_gradients(program),
        activations=round(_activations(program)),
        other=sharded_bytes(program.batch.values()),
    )


def estimate_time(program: Program, chip: Chip, *, num_hosts: int) -> StepTime:
    """Estimates the time of the program's step on chips of a kind, which may be placeholders.

    `num_hosts` is the number of groups of devices with fast links inside: hosts of GPUs, or TPU
    slices.
    """
    experiment, costs = program.experiment, program.model.costs()
    num_devices, examples = program.layout.mesh.size, experiment.train.batch_size
    peak = chip.peak_flops(experiment.model.dtype)
    arithmetic = {
        part: flops * examples / num_devices / peak
        for part, flops in costs.executed_flops().items()
    }
    memory = memory_bytes(program) / chip.memory_bandwidth
    network = _network_seconds(program, chip, num_hosts)
    compute = sum(arithmetic.values())
    totals: dict[Resource, float] = {
        "compute": compute,
        "memory": memory,
        "network": sum(network.values()),
    }
    shares = dict.fromkeys(arithmetic, chip.efficiency.products)
    shares["attention"] = chip.efficiency.attention
    parts = {part: seconds / shares[part] for part, seconds in arithmetic.items()}
    # Products hide what they can of gathers and scatters; sums are waited for.
    hidden = network.pop("fsdp", 0.0)
    waited = max(chip.efficiency.exposed * hidden, hidden - sum(parts.values()))
    parts |= {"memory": memory, "network": waited + sum(network.values())}
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


def estimate_run(experiment: Resolved, step: StepTime, price: float | None = None) -> RunTime:
    """Estimates the time of a resolved experiment, and its cost at a price of a device-hour.

    An example of an early, smaller batch counts as long as any other.
    """
    steps = experiment.timeline.num_steps
    examples = float(experiment.timeline.pace.examples(steps))
    seconds = examples * step.expected / experiment.train.batch_size
    device_hours = seconds * step.num_devices / 3600
    cost = None if price is None else device_hours * price
    return RunTime(steps, seconds / 86400, device_hours, cost)


class Weights(NamedTuple):
    """Numbers of parameters that a device works with: divided by the mesh axis `tensor` alone."""

    layers: float
    """The parameters of all layers together."""
    largest_group: float
    """The parameters of the largest group of layers that `scan` takes at a time. A group has one
    layer for each position of the pattern, and XLA may gather all of its weights at once."""
    ends: float
    """The parameters outside the layers: embedding, head, norms."""
    tables: float
    """The parameters of embeddings, which are part of `ends`."""
    width: int
    """The length of a vector of an embedding."""


def weights_on_device(program: Program) -> Weights:
    """Counts the parameters that a device works with, once sharded weights are gathered."""
    ends = layers = tables = 0.0
    width = 0
    groups: dict[str, float] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.params):
        size = leaf.size / _tensor_ways(program, leaf)
        if (place := place_of(name_of(path))) is not None:
            groups[place.stack] = groups.get(place.stack, 0.0) + size / leaf.shape[0]
            layers += size
        else:
            ends += size
            if name_of(path).endswith("embedding"):
                tables, width = tables + size, leaf.shape[-1]
    return Weights(layers, max(groups.values(), default=0.0), ends, tables, width)


def _tensor_ways(program: Program, leaf: jax.ShapeDtypeStruct) -> int:
    """Returns the number of devices over which the mesh axis `tensor` divides an array."""
    sharding = leaf.sharding
    assert isinstance(sharding, jax.sharding.NamedSharding)
    is_divided = any(
        "tensor" in ((part,) if isinstance(part, str) else part or ()) for part in sharding.spec
    )
    return program.layout.mesh.shape["tensor"] if is_divided else 1


def _activations(program: Program) -> float:
    """Returns the bytes that forward and backward passes hold at once, gradients not counted."""
    costs: Costs = program.model.costs()
    num_tensor, num_fsdp = (program.layout.mesh.shape[axis] for axis in ("tensor", "fsdp"))
    examples = program.microbatch_size
    weights = weights_on_device(program)
    # Weights are rounded to the compute dtype and, where sharded, gathered. Then their gradients
    # are whole too, in float32, until they are scattered.
    copies = jnp.dtype(program.experiment.model.dtype).itemsize + (4 if num_fsdp > 1 else 0)
    loss = examples * costs.loss.on_device(num_tensor) + copies * weights.ends
    layer = examples * costs.working.on_device(num_tensor) + copies * weights.largest_group
    return examples * costs.kept.on_device(num_tensor) + max(loss, layer)


def memory_bytes(program: Program) -> float:
    """Returns the bytes that a device reads and writes in a step, matrix products not counted."""
    costs = program.model.costs()
    num_tensor = program.layout.mesh.shape["tensor"]
    itemsize = jnp.dtype(program.experiment.model.dtype).itemsize
    parameters, moments = state_bytes(program)
    examples = program.microbatch_size * program.num_microbatches
    # Parameters and moments are read and written once; gradients are written, and read twice: by
    # their norm and by the update.
    update = 2 * (parameters + moments) + 3 * parameters
    # In each microbatch weights are rounded, and gradients are added to a sum.
    rounding = parameters / 4 * (4 + itemsize)
    adding = 3 * parameters if program.num_microbatches > 1 else 0
    # The caches of a CPU hold the pairs of a block.
    on_cpu = program.layout.mesh.devices.flat[0].platform == "cpu"
    pairs = 0.0 if on_cpu else costs.pair_traffic.on_device(num_tensor)
    return (
        examples * (costs.traffic.on_device(num_tensor) + pairs)
        + program.num_microbatches * (rounding + adding)
        + update
    )


class Message(NamedTuple):
    """The communication of a step among the devices along one mesh axis."""

    axis: str
    num_devices: int
    """Devices of a group: those along the axis."""
    bytes: float
    """Bytes that reach, or are added up from, all of a group; twice where both happen."""

    @property
    def sent(self) -> float:
        """Bytes that each device sends where the group is a ring."""
        return self.bytes * (1 - 1 / self.num_devices)


def messages(program: Program) -> list[Message]:
    """Returns the least communication of a step, for each mesh axis with several devices.

    In each microbatch, weights are gathered in the compute dtype for the forward pass, those of
    layers for the backward pass too, and gradients are scattered in `model.reduce_dtype`; of the
    gradients of embeddings, the vectors of tokens are exchanged. Devices of the axis `tensor` add
    up the residual stream after attention and after the MLP, in the forward pass, in the backward
    pass and in a recomputed forward pass. Copies of the model add up their gradients once a step,
    in float32.
    """
    mesh, weights = program.layout.mesh.shape, weights_on_device(program)
    model = program.experiment.model
    itemsize = jnp.dtype(model.dtype).itemsize
    reduced = max(itemsize, jnp.dtype(model.reduce_dtype).itemsize)
    vectors = program.microbatch_size * program.model.units_per_example()[1] * weights.width
    gathered = itemsize * (2 * weights.layers + weights.ends)
    scattered = reduced * (weights.layers + weights.ends - weights.tables) + itemsize * vectors
    stream = program.microbatch_size * program.model.costs().stream.on_device(mesh["tensor"])
    num_sums = 4 if model.remat in ("none", "dots") else 6
    num_bytes = {
        "replica": 2 * state_bytes(program)[0],
        "fsdp": program.num_microbatches * (gathered + scattered),
        "tensor": program.num_microbatches * 2 * num_sums * stream,
    }
    return [Message(axis, mesh[axis], n) for axis, n in num_bytes.items() if mesh[axis] > 1]


def _network_seconds(program: Program, chip: Chip, num_hosts: int) -> dict[str, float]:
    """Returns the seconds of communication in a step by mesh axis, at the links' rates."""
    mesh = program.layout.mesh
    # Neighbours share the axis `tensor`, then `fsdp`; copies are farthest apart.
    strides = {"tensor": 1, "fsdp": mesh.shape["tensor"]}
    strides["replica"] = strides["fsdp"] * mesh.shape["fsdp"]

    def seconds(message: Message) -> float:
        """Returns the time in which a group's bytes are gathered, or scattered and added up.

        Each device gets a part 1 - 1/size of the bytes from others, over the links inside a host.
        Each host gets a part 1 - 1/hosts once, over the network adapters of the group's devices
        there.
        """
        size, devices_of_host = message.num_devices, mesh.size // num_hosts
        members = max(1, min(size, devices_of_host // strides[message.axis]))  # in a host
        hosts = -(-size // members)
        inside = message.sent / chip.link_bandwidth if members > 1 else 0.0
        between = message.bytes * (1 - 1 / hosts) / (members * chip.network_bandwidth)
        return max(inside, between)

    found = {message.axis: seconds(message) for message in messages(program)}
    if "fsdp" in found and _spans_torus(mesh):
        found["fsdp"] *= 2
    return found


def _spans_torus(mesh: jax.sharding.Mesh) -> bool:
    """Returns True where the axis `fsdp` needs all three dimensions of a TPU slice.

    libtpu then gathers by adding up parts that are padded with zeros, which doubles the bytes.
    """
    places = np.array([getattr(device, "coords", ()) for device in mesh.devices.flat])
    if places.ndim != 2 or places.shape[1] != 3:
        return False
    smallest, *others = sorted(places.max(axis=0) - places.min(axis=0) + 1)
    return smallest > 1 and mesh.shape["fsdp"] > math.prod(others)
