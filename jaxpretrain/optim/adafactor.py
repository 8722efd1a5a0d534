"""Adafactor's direction: gradients over the root of a second moment that is kept factored.

Shazeer and Stern, Adafactor (arXiv 1804.04235), with the ceiling on the second moment's decay of
Zhai et al., Scaling Vision Transformers (arXiv 2106.04560). Optax's parts factor, clip and scale
whole leaves; here each layer of a stack is on its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.models.contract import Params
from jaxpretrain.optim.layers import Path, layer_axes

_EPSILON = 1e-30  # the paper's epsilon 1, added to squared gradients

_ABSENT = optax.MaskedNode()  # holds no array, so that checkpoints do not know it


class FactoredMoment(NamedTuple):
    """The state of `scale_by_factored_moment`: trees as the parameters, float32.

    Reduced axes stay, with size one, so that each array lies on devices as its parameter does.
    """

    count: jax.Array  # int32 [], number of updates
    row: Params  # [..., in, 1], means over the columns of factored matrices
    column: Params  # [..., 1, out], means over their rows
    whole: Params  # all other parameters


def scale_by_factored_moment(
    decay_power: float, beta2: float, min_size: int
) -> optax.GradientTransformation:
    """Returns the scaling of gradients g to g / sqrt(v).

    For matrices of at least `min_size` a side, v = rows x columns / mean(rows). The decay of update
    t is min(beta2, 1 - t^-decay_power), so v needs no bias correction.
    """

    def factors(path: Path, shape: tuple[int, ...]) -> bool:
        return len(layer_axes(path, len(shape))) >= 2 and min(shape[-2:]) >= min_size

    def init(params: optax.Params) -> FactoredMoment:
        def zeros(axis: int | None) -> Params:
            def leaf(path: Path, p: jax.Array) -> jax.Array | optax.MaskedNode:
                if factors(path, p.shape) != (axis is not None):
                    return _ABSENT
                shape = list(p.shape)
                if axis is not None:
                    shape[axis] = 1
                return jnp.zeros(shape, jnp.float32)

            return jax.tree_util.tree_map_with_path(leaf, params)

        return FactoredMoment(jnp.zeros((), jnp.int32), zeros(-1), zeros(-2), zeros(None))

    def update(updates: optax.Updates, state: Any, params: object = None):
        del params
        count = jnp.asarray(optax.safe_increment(state.count))
        decay = jnp.minimum(beta2, 1.0 - count.astype(jnp.float32) ** -decay_power)

        def leaf(path: Path, g: jax.Array, row: jax.Array, column: jax.Array, whole: jax.Array):
            square = jnp.square(g) + _EPSILON
            if not factors(path, g.shape):
                whole = decay * whole + (1.0 - decay) * square
                return g * jax.lax.rsqrt(whole), row, column, whole
            row = decay * row + (1.0 - decay) * jnp.mean(square, -1, keepdims=True)
            column = decay * column + (1.0 - decay) * jnp.mean(square, -2, keepdims=True)
            # Two roots: the product of two tiny moments would vanish.
            relative = jax.lax.rsqrt(row / jnp.mean(row, -2, keepdims=True))
            return g * relative * jax.lax.rsqrt(column), row, column, whole

        results = jax.tree_util.tree_map_with_path(
            leaf, updates, state.row, state.column, state.whole
        )
        updates, *moments = (
            jax.tree.map(lambda r, i=i: r[i], results, is_leaf=lambda r: isinstance(r, tuple))
            for i in range(4)
        )
        return updates, FactoredMoment(count, *moments)

    return optax.GradientTransformation(init, update)


def clip_by_layer_rms(max_rms: float) -> optax.GradientTransformation:
    """Returns the scaling of each layer's update down to a root mean square of `max_rms`."""

    def clip(path: Path, u: jax.Array, p: jax.Array) -> jax.Array:
        del p
        return u / jnp.maximum(1.0, _layer_rms(path, u) / max_rms)

    return _stateless(clip)


def scale_by_layer_rms(min_rms: float) -> optax.GradientTransformation:
    """Returns the scaling by the root mean square of a layer's parameter, at least `min_rms`."""
    return _stateless(lambda path, u, p: u * jnp.maximum(_layer_rms(path, p), min_rms))


def _layer_rms(path: Path, x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), layer_axes(path, x.ndim), keepdims=True))


def _stateless(leaf: Callable[..., jax.Array]) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(leaf, updates, params)
    )
