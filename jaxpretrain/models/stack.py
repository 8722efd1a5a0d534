"""Stacks of equal blocks: one parameter layout for scanned and unrolled layers.

Layers follow a pattern of P positions (a sliding-window pattern of four, say); the layers at one
position are stacked on a leading axis `layers`. Scanning folds over the stacks, unrolling indexes
them: the same parameters and the same sums, so one checkpoint serves both.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

Params = dict[str, Any]


def unbox(variables: Any) -> tuple[Params, Params]:
    """(arrays, logical axis names) of what `Module.init` returned, as plain nested dicts."""
    boxed = variables.get("params", {})
    is_box = lambda leaf: isinstance(leaf, nn.Partitioned)  # noqa: E731
    arrays = jax.tree.map(lambda leaf: leaf.value, boxed, is_leaf=is_box)
    axes = jax.tree.map(lambda leaf: leaf.names, boxed, is_leaf=is_box)
    return arrays, axes


def init_stack(
    init_layer: Callable[[jax.Array, jax.Array, int], Params],
    rng: jax.Array,
    num_layers: int,
    pattern: int,
) -> Params:
    """{"0": stack, ..., "P-1": stack}; `init_layer(rng, layer, position)` makes one layer.

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
    apply_layer: Callable[[Any, Params, int], Any],
    x: Any,
    stacks: Params,
    *,
    scan: bool,
) -> Any:
    """Runs all layers in order; `apply_layer(x, params, position)` runs one.

    x is what goes from layer to layer, an array or a tree of them.
    """
    pattern = len(stacks)

    def group(x: Any, params: Params) -> Any:
        for p in range(pattern):
            x = apply_layer(x, params[str(p)], p)
        return x

    if scan:
        return jax.lax.scan(lambda x, params: (group(x, params), None), x, stacks)[0]
    for i in range(jax.tree.leaves(stacks)[0].shape[0]):
        x = group(x, jax.tree.map(lambda a, i=i: a[i], stacks))
    return x


def observe_stack(
    apply_layer: Callable[[jax.Array, Params, int], tuple[jax.Array, Any]],
    x: jax.Array,
    stacks: Params,
) -> tuple[jax.Array, Any]:
    """Runs all layers, and what was seen of each: arrays [layers, ...], from the bottom.

    `apply_layer(x, params, position)` runs one and says what it saw. Layers are always scanned.
    """

    def group(x: jax.Array, params: Params) -> tuple[jax.Array, Any]:
        seen = []
        for p in range(len(stacks)):
            x, one = apply_layer(x, params[str(p)], p)
            seen.append(one)
        return x, jax.tree.map(lambda *parts: jax.numpy.stack(parts), *seen)

    x, seen = jax.lax.scan(group, x, stacks)
    return x, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), seen)
