"""Parts of vision transformers: linear maps with bias, LayerNorm, tokens, pre-norm blocks.

Initialisation is that of MAE in mmpretrain, from which Sapiens comes. Parameters are float32 and
are cast to the compute dtype where they are used.

Shapes: b batch, t tokens (patches and the class token), d width, n heads, h head size, f d_ff.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxpretrain.models import layers
from jaxpretrain.models.contract import Constrain
from jaxpretrain.models.layers import ZEROS, Initializer, LayerNorm, Linear, Norm, Precision, weight

EPSILON = 1e-6
"""The number that LayerNorm adds to the variance."""


def uniform(bound: float) -> Initializer:
    """Returns uniform draws within +-bound."""

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init


def xavier(num_fused: int) -> Initializer:
    """Returns uniform draws within +-sqrt(6 / (in + num_fused * out)).

    The reference makes queries, keys and values with one [d, 3 d] matrix, whose bound is smaller
    than that of three matrices: here each is one of `num_fused` parts.
    """

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return uniform((6.0 / (shape[0] + num_fused * shape[1])) ** 0.5)(rng, shape, dtype)

    return init


def linear(
    features: int,
    axes: tuple[str, str],
    precision: Precision,
    *,
    num_fused: int = 1,
    bias_init: Initializer = ZEROS,
    name: str | None = None,
) -> Linear:
    """Returns a linear map with a bias whose kernel is one of `num_fused` parts of a matrix."""
    return Linear(features, axes, precision, xavier(num_fused), bias_init, name=name)


def layer_norm(precision: Precision, name: str | None = None) -> Norm:
    """Returns a LayerNorm with scale and bias."""
    return Norm(LayerNorm(EPSILON), "norm", precision.dtype, affine=True, name=name)


class Token(nn.Module):
    """A learnt vector that stands for a token, that of the class or those of removed patches."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, batch: int, length: int) -> jax.Array:
        """Returns [batch, length, features], all alike."""
        init = layers.truncated_normal(0.02, None)
        token_d = weight(self, "embedding", init, ("norm",), (self.features,)).astype(self.dtype)
        return jnp.broadcast_to(token_d[None, None], (batch, length, self.features))


class Block(nn.Module):
    """One layer: x += attention(norm(x)); x += mlp(norm(x)), with exact GELU and biases."""

    num_heads: int
    d_ff: int
    precision: Precision
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # q, k, v -> [b, t, n, h]
    constrain: Constrain

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Returns the residual stream [b, t, d] after the layer."""
        attention_norm = layer_norm(self.precision, "attention_norm")
        mlp_norm = layer_norm(self.precision, "mlp_norm")
        x_btd = x_btd + self._attention(attention_norm(x_btd))
        x_btd = x_btd + self._mlp(mlp_norm(x_btd))
        return self.constrain(x_btd, ("batch", None, None))

    def _attention(self, x_btd: jax.Array) -> jax.Array:
        b, t, d = x_btd.shape

        def heads(name: str) -> jax.Array:
            part = linear(d, ("embed", "heads"), self.precision, num_fused=3, name=name)
            x_btnh = part(x_btd).reshape(b, t, self.num_heads, d // self.num_heads)
            return self.constrain(x_btnh, ("batch", None, "heads", None))

        out_btnh = self.attend(heads("query"), heads("key"), heads("value"))
        output = linear(d, ("heads", "embed"), self.precision, name="output")
        return output(out_btnh.reshape(b, t, d))

    def _mlp(self, x_btd: jax.Array) -> jax.Array:
        dtype, small = self.precision.dtype, layers.truncated_normal(1e-6, None)
        up = linear(self.d_ff, ("embed", "mlp"), self.precision, bias_init=small, name="up")
        hidden_btf = nn.gelu(up(x_btd).astype(jnp.float32), approximate=False).astype(dtype)
        hidden_btf = self.constrain(hidden_btf, ("batch", None, "mlp"))
        d = x_btd.shape[-1]
        down = linear(d, ("mlp", "embed"), self.precision, bias_init=small, name="down")
        return down(hidden_btf)
