"""The memory of the training step on a device, in closed form.

Without a compiler this is the answer; with one, it says what is worth compiling. State and batch
are exact. Activations peak at one of two moments: in the loss, or in the backward pass of the
largest layer. The larger one counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.models.costs import Costs
from jaxpretrain.models.stack import place_of
from jaxpretrain.optim.layers import name_of
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.train.memory import Memory
from jaxpretrain.train.program import Program


class Weights(NamedTuple):
    """Numbers of parameters that a device works with: divided by the mesh axis `tensor` alone."""

    layers: float
    """The parameters of all layers together."""
    largest_group: float
    """The parameters of the largest group of layers that `scan` takes at a time. A group has one
    layer for each position of the pattern, and XLA may gather all of its weights at once."""
    ends: float
    """The parameters outside the layers: embedding, head, norms."""


def estimate_memory(program: Program) -> Memory:
    """Estimates the memory of one device at the peak of the program's step.

    The error against XLA's compilers is 10 to 20 %, see docs/planning.md. With microbatches there
    are two gradients for each parameter: the sum, and that of one microbatch.
    """
    state = program.state
    parameters = sharded_bytes(jax.tree.leaves(state.params))
    optimizer = sharded_bytes(jax.tree.leaves((state.optimizer, state.ema)))
    batch = sharded_bytes(program.batch.values())
    gradients = parameters * (2 if program.num_microbatches > 1 else 1)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        gradients=gradients,
        activations=round(_activations(program)),
        other=batch,
    )


def weights_on_device(program: Program) -> Weights:
    """Counts the parameters that a device works with, once sharded weights are gathered."""
    ends = layers = 0.0
    groups: dict[str, float] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.params):
        size = leaf.size / _tensor_ways(program, leaf)
        if (place := place_of(name_of(path))) is not None:
            groups[place.stack] = groups.get(place.stack, 0.0) + size / leaf.shape[0]
            layers += size
        else:
            ends += size
    return Weights(layers, max(groups.values(), default=0.0), ends)


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


def _tensor_ways(program: Program, leaf: jax.ShapeDtypeStruct) -> int:
    """Returns the number of devices over which the mesh axis `tensor` divides an array."""
    sharding = leaf.sharding
    assert isinstance(sharding, jax.sharding.NamedSharding)
    is_divided = any(
        "tensor" in ((part,) if isinstance(part, str) else part or ()) for part in sharding.spec
    )
    return program.layout.mesh.shape["tensor"] if is_divided else 1
