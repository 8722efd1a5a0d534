"""Matrix products of activations and weights, with their gradients.

XLA's fast bfloat16 product on CPUs takes row-major operands and gives float32; asked for anything
else, it falls back to one of half the speed, and gradients are all "anything else": they multiply
by a transpose. `ROW_MAJOR` asks for just what is fast. Elsewhere the plain products are as good.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


class Products(NamedTuple):
    """How a model multiplies."""

    name: str
    matmul: Callable[[jax.Array, jax.Array], jax.Array]
    """(x [r, k] in the compute dtype, w [k, n] in any) -> [r, n] in the dtype of x."""
    transposed: Callable[[jax.Array], jax.Array]
    """[m, n] -> [n, m], to be multiplied."""


def choose_products(platform: str, dtype: str) -> Products:
    """The products for a platform ("cpu", "gpu", "tpu") and a compute dtype."""
    return ROW_MAJOR if platform == "cpu" and dtype == "bfloat16" else PLAIN


def plain_matmul(x_rk: jax.Array, w_kn: jax.Array) -> jax.Array:
    """x w, both in the dtype of x."""
    return x_rk @ w_kn.astype(x_rk.dtype)


def _row_major(x_rk: jax.Array, w_kn: jax.Array) -> jax.Array:
    out_rn = jnp.dot(x_rk, w_kn.astype(x_rk.dtype), preferred_element_type=jnp.float32)
    return out_rn.astype(x_rk.dtype)


def _forward(x_rk: jax.Array, w_kn: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _row_major(x_rk, w_kn), (x_rk, w_kn)


def _backward(
    residuals: tuple[jax.Array, jax.Array], dout_rn: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_rk, w_kn = residuals
    w_nk = transposed(w_kn.astype(x_rk.dtype))
    dx_rk = jnp.dot(dout_rn, w_nk, preferred_element_type=jnp.float32).astype(x_rk.dtype)
    dw_kn = jnp.dot(transposed(x_rk), dout_rn, preferred_element_type=jnp.float32)
    return dx_rk, dw_kn.astype(w_kn.dtype)


row_major_matmul: Any = jax.custom_vjp(_row_major)
"""As `plain_matmul`; the gradient of a float32 weight is not rounded on the way."""

row_major_matmul.defvjp(_forward, _backward)


def transposed(a_mn: jax.Array) -> jax.Array:
    """The transpose as a copy in row-major order; XLA would only note that the axes are swapped."""
    return with_layout_constraint(a_mn.T, Layout(major_to_minor=(0, 1)))


PLAIN = Products("plain", plain_matmul, jnp.transpose)
ROW_MAJOR = Products("row-major", row_major_matmul, transposed)
