"""Rotary positions, and YaRN, which stretches them over contexts longer than those trained on.

Shapes: b batch, t positions, n heads, h head size.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Positive, at_least


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): slow rotations are slowed down further, fast ones stay."""

    factor: Annotated[float, at_least(1)] = 8.0
    """How many times longer contexts become."""
    original_length: Annotated[int, Positive] = 8192
    """The context that was trained on before."""
    beta_fast: Annotated[float, Positive] = 32.0
    """Channels that turn this often within original_length, or more, stay as they are."""
    beta_slow: Annotated[float, Positive] = 1.0
    """Channels that turn this often, or less, turn slower by the factor; those between, partly."""

    def check(self, num_channels: int, theta: float) -> None:
        """Refuses values for which YaRN is not defined, or not the same in every program.

        Raises:
          InputError: a value is out of range, or channels that stay would be slower ones than those
            that are slowed down.
        """
        turn = 2 * math.pi * self.beta_slow
        if self.factor < 1.0:
            raise InputError(f"model.yarn.factor={self.factor}: must be 1 or more")
        if not 0 < self.beta_slow <= self.beta_fast:
            raise InputError(
                f"model.yarn.beta_slow={self.beta_slow}: must be above 0 and no more than "
                f"model.yarn.beta_fast={self.beta_fast}"
            )
        if self.original_length < turn:
            raise InputError(
                f"model.yarn.original_length={self.original_length}: must be at least "
                f"2 pi beta_slow = {turn:.4g}, one position for each radian of the slow turns"
            )
        if theta <= 1.0:
            raise InputError(f"model.rope_theta={theta}: must be above 1 with YaRN")
        low, high = self._bounds(num_channels, theta)
        if low > high:
            raise InputError(
                f"model.yarn.original_length={self.original_length}: too long for "
                f"model.rope_theta={theta}, no channel would be slowed down"
            )

    def stretch(self, inverse_h: jax.Array, theta: float) -> jax.Array:
        """The angles per position [h / 2], fast channels first, over the longer context."""
        num_channels = inverse_h.shape[0]
        low, high = self._bounds(num_channels, theta)
        ramp_h = (jnp.arange(num_channels, dtype=jnp.float32) - low) / max(high - low, 1e-3)
        slowed_h = jnp.clip(ramp_h, 0.0, 1.0)
        return inverse_h * (1.0 - slowed_h) + inverse_h / self.factor * slowed_h

    def _bounds(self, num_channels: int, theta: float) -> tuple[int, int]:
        """The channels between which the slowing begins and is complete."""

        def channel(num_turns: float) -> float:
            """Where, between channels, that many turns fit in the original length."""
            period = self.original_length / (num_turns * 2 * math.pi)
            return num_channels * math.log(period) / math.log(theta)

        low = max(math.floor(channel(self.beta_fast)), 0)
        return low, min(math.ceil(channel(self.beta_slow)), 2 * num_channels - 1)

    @property
    def magnitude(self) -> float:
        """What sine and cosine are multiplied by, so that attention stays as sharp."""
        return 0.1 * math.log(self.factor) + 1.0


def rope_table(
    positions_bt: jax.Array, head_dim: int, theta: float, yarn: Yarn | None = None
) -> tuple[jax.Array, jax.Array]:
    """(sin, cos) [b, t, h / 2] in float32: angle position * theta^(-2i / h), or as YaRN has it."""
    inverse_h = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if yarn is not None:
        inverse_h = yarn.stretch(inverse_h, theta)
    angles_bth = positions_bt.astype(jnp.float32)[:, :, None] * inverse_h[None, None, :]
    magnitude = 1.0 if yarn is None else yarn.magnitude
    return magnitude * jnp.sin(angles_bth), magnitude * jnp.cos(angles_bth)


def rotate(x_btnh: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions, half-split as in NeoX and Hugging Face, in float32.

    The tables serve all rows when theirs is one.
    """
    sin, cos = (table_bth[:, :, None, :] for table_bth in rope)
    first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_btnh.dtype)
