"""Norms of parameters, gradients and updates: of the whole, and of each part by layer.

Squares are summed by layer first, and the norm of the whole comes from these sums. The parts cost
nothing, because no array is read twice.
"""

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.models.stack import STACK, place_of
from jaxpretrain.optim.layers import Path, layer_axes, name_of

Parts = dict[str, jax.Array]
"""Numbers by part of a model, float32. A part of a stack has `blocks` in its name and a number for
each layer from the bottom, [layers] (`blocks/query`; `blocks` is the whole layer); another part has
one number, [] (`embed`)."""


def norms(tree: optax.Params) -> tuple[jax.Array, Parts]:
    """Returns the norm of a tree like the parameters, and the norms of its parts with biases."""
    squares = _squares(tree)
    return _root_of_sum(squares), {
        part: jnp.sqrt(square) for part, square in (_stacks(squares) | squares).items()
    }


def global_norm(tree: optax.Params) -> jax.Array:
    """Returns the norm of a tree like the parameters."""
    return _root_of_sum(_squares(tree))


def _root_of_sum(squares: Parts) -> jax.Array:
    return jnp.sqrt(sum(map(jnp.sum, squares.values())))


def _squares(tree: optax.Params) -> Parts:
    sums: dict[str, dict[int, jax.Array]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        part, position = _place(path)
        square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=layer_axes(path, x.ndim))
        positions = sums.setdefault(part, {})
        positions[position] = positions[position] + square if position in positions else square
    return {part: _in_order(positions) for part, positions in sums.items()}


def _stacks(squares: Parts) -> Parts:
    """Returns the sums over all parts of a layer."""
    stacks: Parts = {}
    for part, square in squares.items():
        above, is_in_stack, _ = part.rpartition(f"{STACK}/")
        if is_in_stack:
            name = f"{above}{STACK}"
            stacks[name] = stacks[name] + square if name in stacks else square
    return stacks


def _place(path: Path) -> tuple[str, int]:
    """Returns ("blocks/query", 0), a part and a position, for "blocks/0/query/kernel"."""
    name = name_of(path)
    if (place := place_of(name)) is None:
        return name.rpartition("/")[0] or name, 0
    return f"{place.stack}/{place.part}".rpartition("/")[0], place.position


def _in_order(positions: dict[int, jax.Array]) -> jax.Array:
    """Returns the layers of the model, from the bottom, of the layers at each position."""
    if len(positions) == 1:
        return positions[0]
    return jnp.stack([positions[p] for p in sorted(positions)], axis=1).reshape(-1)
