"""Norms: the choices of a config, and the module that computes them.

Shapes: b batch, t positions, d model width.
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpretrain.config.ranges import Epsilon
from jaxpretrain.models.layers import Initializer, weight

ZEROS, _ONES = nn.initializers.zeros_init(), nn.initializers.ones_init()

NormRounding = Literal["before_scale", "after_scale"]
"""The places where RMSNorm may leave float32."""


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm, in OLMo 1 without parameters."""

    epsilon: Epsilon = 1e-5
    """The number that is added to the variance."""


@dataclass(frozen=True)
class RMSNorm:
    """RMSNorm with a scale (OLMo 2 and 3)."""

    epsilon: Epsilon = 1e-5
    """The number that is added to the mean square."""
    rounding: NormRounding = "before_scale"
    """The place of the rounding to the input's dtype: before_scale (OLMo's trainer), or once, to
    the compute dtype, after_scale (OLMo-core)."""


class Norm(nn.Module):
    """A norm over the last axis, computed in float32.

    LayerNorm has a scale and a bias where it is affine, RMSNorm always has a scale.
    """

    choice: LayerNorm | RMSNorm
    axis: str
    dtype: jnp.dtype
    affine: bool = False

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Returns the input with its last axis normalised, in the compute dtype."""
        choice, y_btd = self.choice, x_btd.astype(jnp.float32)
        if isinstance(choice, LayerNorm):
            y_btd = y_btd - jnp.mean(y_btd, axis=-1, keepdims=True)
        mean_bt1 = jnp.mean(jnp.square(y_btd), axis=-1, keepdims=True)
        y_btd = y_btd * jax.lax.rsqrt(mean_bt1 + choice.epsilon)
        if isinstance(choice, RMSNorm):
            if choice.rounding == "before_scale":
                y_btd = y_btd.astype(x_btd.dtype)
            y_btd = y_btd * self._vector("scale", _ONES, x_btd).astype(y_btd.dtype)
        elif self.affine:
            y_btd = y_btd * self._vector("scale", _ONES, x_btd)
            y_btd = y_btd + self._vector("bias", ZEROS, x_btd)
        return y_btd.astype(self.dtype)

    def _vector(self, name: str, init: Initializer, x_btd: jax.Array) -> jax.Array:
        return weight(self, name, init, (self.axis,), x_btd.shape[-1:])[None, None]
