"""Matrix products of activations and weights, with their gradients.

XLA's fast bfloat16 product on CPUs takes row-major operands and returns float32. For anything else
it falls back to a product of half the speed, and gradients are always such a case, because they
multiply by a transpose. `ROW_MAJOR` uses only the fast product. On other devices the plain products
are as fast.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


class Products(NamedTuple):
    """One way to multiply matrices."""

    name: str
    matmul: Callable[[jax.Array, jax.Array], jax.Array]
    """The product of x [r, k] in the compute dtype and w [k, n] in any, in the dtype of x."""
    transposed: Callable[[jax.Array], jax.Array]
    """The transpose [n, m] of [m, n], in a layout that is fast to multiply."""


class Precision(NamedTuple):
    """The dtype of activations and matrix products, and the way to compute the products."""

    dtype: jnp.dtype
    products: Products


def choose_precision(platform: str, dtype: str) -> Precision:
    """Returns a compute dtype with its products for a platform ("cpu", "gpu", "tpu")."""
    is_row_major = platform == "cpu" and dtype == "bfloat16"
    return Precision(jnp.dtype(dtype), ROW_MAJOR if is_row_major else PLAIN)


def plain_matmul(x_rk: jax.Array, w_kn: jax.Array) -> jax.Array:
    """Returns x w, both in the dtype of x."""
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


row_major_matmul = jax.custom_vjp(_row_major)
"""The same product as `plain_matmul`; the gradient of a float32 weight is not rounded."""

row_major_matmul.defvjp(_forward, _backward)


def transposed(a_mn: jax.Array) -> jax.Array:
    """Returns the transpose as a copy in row-major order; XLA would only swap the axes' names."""
    return with_layout_constraint(a_mn.T, Layout(major_to_minor=(0, 1)))


PLAIN = Products("plain", plain_matmul, jnp.transpose)
ROW_MAJOR = Products("row-major", row_major_matmul, transposed)
