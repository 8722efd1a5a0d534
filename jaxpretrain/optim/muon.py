"""Muon's direction: the momentum of each matrix, with its singular values made one.

Jordan et al., Muon (2024), with the scaling of Liu et al., Muon is Scalable for LLM Training (arXiv
2502.16982).
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

MuonScale = Literal["adamw_rms", "spectral"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steep at zero, within 0.3 of one above it
_EPSILON = 1e-7


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
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + _EPSILON)
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
        del params
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
