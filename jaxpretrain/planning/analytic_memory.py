"""What the training step takes of a device's memory, in closed form.

Where there is no compiler this is the answer; where there is one, it says what is worth compiling.
State and batch are exact. What forward and backward hold is the higher of two moments: the loss,
and the backward pass of the largest layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.models.costs import Costs
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.train.memory import Memory
from jaxpretrain.train.program import Program


class Weights(NamedTuple):
    """Numbers of parameters that one device works with: divided by the mesh axis `tensor` alone."""

    layers: float
    """Of all layers together."""
    largest_group: float
    """Of the largest group of layers that `scan` takes at a time: one of each position of the
    pattern, whose weights XLA may gather all at once."""
    ends: float
    """Of what is not in layers."""


def estimate_memory(program: Program) -> Memory:
    """Bytes of one device at the peak of the program's step.

    Within a tenth or two of what XLA's compilers lay out, see docs/planning.md. `gradients` are two
    numbers for each parameter where microbatches add up: the sums, and those of one microbatch.
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
    """Parameters as a device works with them, gathered where they are sharded."""
    ends = layers = 0.0
    groups: dict[tuple[str, ...], float] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.params):
        names = [key.key for key in path]
        size = leaf.size / _tensor_ways(program, leaf)
        if "blocks" in names:
            stacks = tuple(names[: names.index("blocks")])
            groups[stacks] = groups.get(stacks, 0.0) + size / leaf.shape[0]
            layers += size
        else:
            ends += size
    return Weights(layers, max(groups.values(), default=0.0), ends)


def _activations(program: Program) -> float:
    """Everything that forward and backward hold at once, above the gradients."""
    costs: Costs = program.model.costs()
    num_tensor, num_fsdp = (program.layout.mesh.shape[axis] for axis in ("tensor", "fsdp"))
    examples = program.microbatch_size
    weights = weights_on_device(program)
    # Rounded copies, gathered where weights are sharded. Then their gradients are as large, and in
    # float32, before they are scattered.
    copies = jnp.dtype(program.experiment.model.dtype).itemsize + (4 if num_fsdp > 1 else 0)
    loss = examples * costs.loss.on_device(num_tensor) + copies * weights.ends
    layer = examples * costs.working.on_device(num_tensor) + copies * weights.largest_group
    return examples * costs.kept.on_device(num_tensor) + max(loss, layer)


def _tensor_ways(program: Program, leaf: Any) -> int:
    """Over how many devices the mesh axis `tensor` divides an array."""
    divided = any(
        "tensor" in ((part,) if isinstance(part, str) else part or ())
        for part in leaf.sharding.spec
    )
    return program.layout.mesh.shape["tensor"] if divided else 1
