"""Norms of parameters, gradients and updates: of the whole, and of each part by layer.

Squares are summed by layer first, and the norm of the whole comes from these sums: to know where it
comes from costs nothing, because no array is read twice.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpretrain.optim.layers import Path, is_stacked, layer_axes

Parts = dict[str, jax.Array]
"""A number for each part of a model, float32: [layers] from the bottom for parts of a stack, whose
names hold `blocks` (`blocks/query`; `blocks` is the whole layer), and [] for others (`embed`)."""


def norms(tree: Any) -> tuple[jax.Array, Parts]:
    """The norm of a tree like the parameters, and those of its parts, biases included."""
    squares = _squares(tree)
    return _root_of_sum(squares), {
        part: jnp.sqrt(square) for part, square in (_stacks(squares) | squares).items()
    }


def global_norm(tree: Any) -> jax.Array:
    """The norm of a tree like the parameters."""
    return _root_of_sum(_squares(tree))


def _root_of_sum(squares: Parts) -> jax.Array:
    return jnp.sqrt(sum(map(jnp.sum, squares.values())))


def _squares(tree: Any) -> Parts:
    sums: dict[str, dict[int, jax.Array]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        part, position = _place(path)
        square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=layer_axes(path, x.ndim))
        positions = sums.setdefault(part, {})
        positions[position] = positions[position] + square if position in positions else square
    return {part: _in_order(positions) for part, positions in sums.items()}


def _stacks(squares: Parts) -> Parts:
    """The sums over all parts of a layer."""
    stacks: Parts = {}
    for part, square in squares.items():
        above, is_in_stack, _ = part.rpartition("blocks/")
        if is_in_stack:
            name = f"{above}blocks"
            stacks[name] = stacks[name] + square if name in stacks else square
    return stacks


def _place(path: Path) -> tuple[str, int]:
    """The part and its position in the pattern: `blocks/0/query/kernel` is `blocks/query`, 0."""
    keys, position = [key.key for key in path], 0
    if is_stacked(path):
        position = int(keys.pop(keys.index("blocks") + 1))
    return "/".join(keys[:-1] or keys), position


def _in_order(positions: dict[int, jax.Array]) -> jax.Array:
    """The layers at each position of the pattern as the layers of the model, from the bottom."""
    if len(positions) == 1:
        return positions[0]
    return jnp.stack([positions[p] for p in sorted(positions)], axis=1).reshape(-1)
