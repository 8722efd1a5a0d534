"""The norms of the OLMo decoder: the choices of a config, and the module that computes them.

Shapes: b batch, t positions, d model width.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpretrain.config.ranges import Between
from jaxpretrain.models.layers import weight

NormRounding = Literal["before_scale", "after_scale"]
"""The places where RMSNorm may leave float32."""

Epsilon = Annotated[float, Between(0, 1, "(]")]
"""The type of a field that holds a small number against divisions by zero."""


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm without parameters (OLMo 1)."""

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
    """The norm that a config chooses, computed in float32, over one logical axis."""

    choice: LayerNorm | RMSNorm
    axis: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Returns the input with its last axis normalised, in the compute dtype."""
        choice, y_btd = self.choice, x_btd.astype(jnp.float32)
        if isinstance(choice, LayerNorm):
            y_btd = y_btd - jnp.mean(y_btd, axis=-1, keepdims=True)
        mean_bt1 = jnp.mean(jnp.square(y_btd), axis=-1, keepdims=True)
        y_btd = y_btd * jax.lax.rsqrt(mean_bt1 + choice.epsilon)
        if isinstance(choice, RMSNorm):
            ones = nn.initializers.ones_init()
            scale_d = weight(self, "scale", ones, (self.axis,), x_btd.shape[-1:])
            if choice.rounding == "before_scale":
                y_btd = y_btd.astype(x_btd.dtype)
            y_btd = y_btd * scale_d.astype(y_btd.dtype)[None, None, :]
        return y_btd.astype(self.dtype)
