"""The directions of Adafactor and Muon, which look at each layer of a stack on its own.

Adafactor: gradients over the root of a second moment that is kept factored. Shazeer and Stern,
Adafactor (arXiv 1804.04235), with the ceiling on the second moment's decay of Zhai et al., Scaling
Vision Transformers (arXiv 2106.04560). Optax's parts factor, clip and scale whole leaves.

Muon: the momentum of each matrix, with its singular values made one. Jordan et al., Muon (2024),
with the scaling of Liu et al., Muon is Scalable for LLM Training (arXiv 2502.16982).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.models.contract import Params
from jaxpretrain.optim.layers import Path, layer_axes

_SMALL_SQUARE = 1e-30  # the paper's epsilon 1, added to squared gradients

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

            return jax.tree.map_with_path(leaf, params)

        return FactoredMoment(jnp.zeros((), jnp.int32), zeros(-1), zeros(-2), zeros(None))

    def update(updates: optax.Updates, state: Any, params: object = None):
        count = jnp.asarray(optax.safe_increment(state.count))
        decay = jnp.minimum(beta2, 1.0 - count.astype(jnp.float32) ** -decay_power)

        def leaf(path: Path, g: jax.Array, row: jax.Array, column: jax.Array, whole: jax.Array):
            square = jnp.square(g) + _SMALL_SQUARE
            if not factors(path, g.shape):
                whole = decay * whole + (1.0 - decay) * square
                return g * jax.lax.rsqrt(whole), row, column, whole
            row = decay * row + (1.0 - decay) * jnp.mean(square, -1, keepdims=True)
            column = decay * column + (1.0 - decay) * jnp.mean(square, -2, keepdims=True)
            # Two roots: the product of two tiny moments would vanish.
            relative = jax.lax.rsqrt(row / jnp.mean(row, -2, keepdims=True))
            return g * relative * jax.lax.rsqrt(column), row, column, whole

        results = jax.tree.map_with_path(leaf, updates, state.row, state.column, state.whole)
        updates, *moments = (
            jax.tree.map(lambda r, i=i: r[i], results, is_leaf=lambda r: isinstance(r, tuple))
            for i in range(4)
        )
        return updates, FactoredMoment(count, *moments)

    return optax.GradientTransformation(init, update)


def clip_by_layer_rms(max_rms: float) -> optax.GradientTransformation:
    """Returns the scaling of each layer's update down to a root mean square of `max_rms`."""
    return _stateless(lambda path, u, p: u / jnp.maximum(1.0, _layer_rms(path, u) / max_rms))


def scale_by_layer_rms(min_rms: float) -> optax.GradientTransformation:
    """Returns the scaling by the root mean square of a layer's parameter, at least `min_rms`."""
    return _stateless(lambda path, u, p: u * jnp.maximum(_layer_rms(path, p), min_rms))


def _layer_rms(path: Path, x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), layer_axes(path, x.ndim), keepdims=True))


def _stateless(leaf: Callable[..., jax.Array]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map_with_path(leaf, updates, params))


MuonScale = Literal["adamw_rms", "spectral"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steep at zero, within 0.3 of one above it
_SMALL_NORM = 1e-7


class MuonState(NamedTuple):
    """The state of `scale_by_muon`."""

    momentum: optax.Params  # running means of the gradients


def orthogonalize(matrices: jax.Array, num_steps: int) -> jax.Array:
    """Returns roughly U V^T for each matrix U S V^T in [..., in, out].

    The singular values of the result lie in 0.7 to 1.2. Newton-Schulz iterations of an odd
    polynomial need products alone. Singular values below a thousandth or so of the matrix's norm
    are still on their way up after five.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # the smaller Gram matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + _SMALL_NORM)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if is_tall else x


def scale_by_muon(
    beta: float, num_steps: int, scale: MuonScale, momentum_dtype: str
) -> optax.GradientTransformation:
    """Returns Nesterov momentum, orthogonalized and scaled by shape, for leaves [..., in, out].

    `adamw_rms` gives updates the root mean square 0.2 that Adam's have, so that its learning rates
    and decay carry over; `spectral` keeps the change of a layer's output independent of its width.
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(optax.tree.zeros_like(params, dtype=jnp.dtype(momentum_dtype)))

    def update(updates: optax.Updates, state: Any, params: object = None):
        before = jax.tree.map(lambda m, g: m.astype(g.dtype), state.momentum, updates)
        momentum = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, before, updates)

        def direction(m: jax.Array, g: jax.Array) -> jax.Array:
            factor = _factor(scale, *g.shape[-2:])
            return factor * orthogonalize(beta * m + (1 - beta) * g, num_steps)

        updates = jax.tree.map(direction, momentum, updates)
        return updates, MuonState(optax.tree.cast(momentum, jnp.dtype(momentum_dtype)))

    return optax.GradientTransformation(init, update)


def _factor(scale: MuonScale, num_in: int, num_out: int) -> float:
    if scale == "adamw_rms":
        return 0.2 * math.sqrt(max(num_in, num_out))
    return math.sqrt(max(1.0, num_out / num_in))
