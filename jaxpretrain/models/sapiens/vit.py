"""Parts of vision transformers: linear maps with bias, affine LayerNorm, tokens, pre-norm blocks.

Initialisation is that of MAE in mmpretrain, from which Sapiens comes. Parameters are float32 and
are cast to the compute dtype where they are used.

Shapes: b batch, t tokens (patches and the class token), d width, n heads, h head size, f d_ff.
"""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxpretrain.models import layers
from jaxpretrain.models.contract import Constrain
from jaxpretrain.models.layers import Initializer, weight
from jaxpretrain.models.matmul import Products

EPSILON = 1e-6  # of LayerNorm
_ZEROS = nn.initializers.zeros_init()


def xavier(num_fused: int = 1) -> Initializer:
    """Returns uniform draws within +-sqrt(6 / (in + num_fused * out)).

    The reference makes queries, keys and values with one [d, 3 d] matrix, whose bound is smaller
    than that of three matrices: here each is one of `num_fused` parts.
    """

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        bound = (6.0 / (shape[0] + num_fused * shape[1])) ** 0.5
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init


def uniform(bound: float) -> Initializer:
    """Returns uniform draws within +-bound."""

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init


@dataclass(frozen=True)
class Precision:
    """The dtype of activations and matrix products, and the way in which products are computed."""

    dtype: jnp.dtype
    products: Products


class Linear(nn.Module):
    """A linear map, y = x W + b, [.., in] -> [.., out]."""

    features: int
    axes: tuple[str, str]
    precision: Precision
    kernel_init: Initializer = xavier()
    bias_init: Initializer = _ZEROS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the output of the map in the compute dtype."""
        dtype, products = self.precision.dtype, self.precision.products
        kernel = weight(self, "kernel", self.kernel_init, self.axes, (x.shape[-1], self.features))
        bias = weight(self, "bias", self.bias_init, self.axes[1:], (self.features,))
        rows = products.matmul(x.astype(dtype).reshape(-1, x.shape[-1]), kernel)
        return (rows + bias.astype(dtype)[None]).reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """LayerNorm with scale and bias, computed in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Returns the input with its last axis normalised, in the compute dtype."""
        shape = x_btd.shape[-1:]
        scale_d = weight(self, "scale", nn.initializers.ones_init(), ("norm",), shape)
        bias_d = weight(self, "bias", _ZEROS, ("norm",), shape)
        x32 = x_btd.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + EPSILON)
        return (x32 * scale_d[None, None] + bias_d[None, None]).astype(self.dtype)


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
        dtype = self.precision.dtype
        x_btd = x_btd + self._attention(LayerNorm(dtype, name="attention_norm")(x_btd))
        x_btd = x_btd + self._mlp(LayerNorm(dtype, name="mlp_norm")(x_btd))
        return self.constrain(x_btd, ("batch", None, None))

    def _attention(self, x_btd: jax.Array) -> jax.Array:
        b, t, d = x_btd.shape

        def heads(name: str) -> jax.Array:
            part = Linear(d, ("embed", "heads"), self.precision, xavier(num_fused=3), name=name)
            x_btnh = part(x_btd).reshape(b, t, self.num_heads, d // self.num_heads)
            return self.constrain(x_btnh, ("batch", None, "heads", None))

        out_btnh = self.attend(heads("query"), heads("key"), heads("value"))
        output = Linear(d, ("heads", "embed"), self.precision, name="output")
        return output(out_btnh.reshape(b, t, d))

    def _mlp(self, x_btd: jax.Array) -> jax.Array:
        dtype, small = self.precision.dtype, layers.truncated_normal(1e-6, None)
        up = Linear(self.d_ff, ("embed", "mlp"), self.precision, bias_init=small, name="up")
        hidden_btf = nn.gelu(up(x_btd).astype(jnp.float32), approximate=False).astype(dtype)
        hidden_btf = self.constrain(hidden_btf, ("batch", None, "mlp"))
        down = Linear(
            x_btd.shape[-1], ("mlp", "embed"), self.precision, bias_init=small, name="down"
        )
        return down(hidden_btf)
