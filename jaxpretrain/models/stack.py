"""Stacks of equal blocks: one parameter layout for scanned and unrolled layers, and its names.

Layers follow a pattern of P positions (a sliding-window pattern of four, say); the layers at one
position are stacked on a leading axis `layers`. Scanning folds over the stacks, unrolling indexes
them: the same parameters and the same sums, so one checkpoint serves both.

The stacks of a model lie below the name `blocks`: `blocks/<position>/query/kernel`, or
`encoder/blocks/<position>/query/kernel` where there are several towers. A quantity by layer ends
with the same name: `signals/grad_norm/encoder/blocks`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax

from jaxpretrain.models.contract import Params

STACK = "blocks"
"""The name below which a stack of layers lies."""

X = TypeVar("X")
"""An array or a tree of them that goes from layer to layer."""

Seen = TypeVar("Seen")
"""An array or a tree of them that one layer shows."""


class Place(NamedTuple):
    """The place of a stacked parameter."""

    stack: str
    """The name of the stack, `blocks` or `encoder/blocks`."""
    position: int
    """The position in the pattern of layers."""
    part: str
    """The name within a layer, `query/kernel`."""


def is_stacked(name: str) -> bool:
    """Returns true for the name of a parameter or a signal whose first axis counts layers."""
    return STACK in name.split("/")


def place_of(name: str) -> Place | None:
    """Returns the place of the parameter of that name; None where it is in no stack."""
    if not is_stacked(name):
        return None
    tower, _, rest = f"/{name}".rpartition(f"/{STACK}/")
    position, _, part = rest.partition("/")
    return Place(f"{tower}/{STACK}".lstrip("/"), int(position), part)


def tower_of(signal: str) -> str:
    """Returns the tower in the name of a signal by layer: "encoder", or "" of the only tower."""
    return signal.split("/", 2)[2].removesuffix(STACK).rstrip("/")


def init_stack(
    init_layer: Callable[[jax.Array, jax.Array, int], Params],
    rng: jax.Array,
    num_layers: int,
    pattern: int,
) -> Params:
    """Returns {"0": stack, ..., "P-1": stack}; `init_layer(rng, layer, position)` makes one layer.

    `layer` counts from 0 over the whole model and is traced (depth-scaled initialisations use it).
    """
    rngs = jax.random.split(rng, num_layers)
    layers = jax.numpy.arange(num_layers)
    return {
        str(p): jax.vmap(lambda key, layer, p=p: init_layer(key, layer, p))(
            rngs[p::pattern], layers[p::pattern]
        )
        for p in range(pattern)
    }


def apply_stack(
    apply_layer: Callable[[X, Params, int], X], x: X, stacks: Params, *, scan: bool
) -> X:
    """Runs all layers in order; `apply_layer(x, params, position)` runs one."""
    pattern = len(stacks)

    def group(x: X, params: Params) -> X:
        for p in range(pattern):
            x = apply_layer(x, params[str(p)], p)
        return x

    if scan:
        return jax.lax.scan(lambda x, params: (group(x, params), None), x, stacks)[0]
    for i in range(jax.tree.leaves(stacks)[0].shape[0]):
        x = group(x, jax.tree.map(lambda a, i=i: a[i], stacks))
    return x


def observe_stack(
    apply_layer: Callable[[jax.Array, Params, int], tuple[jax.Array, Seen]],
    x: jax.Array,
    stacks: Params,
) -> tuple[jax.Array, Seen]:
    """Runs all layers and returns what was seen of each too: arrays [layers, ...], from the bottom.

    `apply_layer(x, params, position)` runs one and says what it saw. Layers are always scanned.
    """

    def group(x: jax.Array, params: Params) -> tuple[jax.Array, Seen]:
        seen = []
        for p in range(len(stacks)):
            x, one = apply_layer(x, params[str(p)], p)
            seen.append(one)
        return x, jax.tree.map(lambda *parts: jax.numpy.stack(parts), *seen)

    x, seen = jax.lax.scan(group, x, stacks)
    return x, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), seen)
