"""Rotary positions, and YaRN, which stretches them over contexts longer than those trained on.

Shapes: b batch, t positions, n heads, h head size.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.ranges import Positive, above, at_least

Theta = Annotated[float, above(1)]
"""The type of a field that holds the base of rotary positions."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021)."""

    theta: Theta = 10000.0
    """The base: channel 2i of h turns by theta^(-2i / h) radians per position."""


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): slow rotations are slowed down further, fast ones stay."""

    theta: Theta = 10000.0
    """The base, as of plain rotary positions."""
    factor: Annotated[float, at_least(1)] = 8.0
    """The number of times by which contexts become longer."""
    original_length: Annotated[int, Positive] = 8192
    """The context that was trained on before."""
    beta_fast: Annotated[float, Positive] = 32.0
    """Channels that turn this often within original_length, or more often, stay as they are."""
    beta_slow: Annotated[float, Positive] = 1.0
    """Channels that turn this often or less are slowed by the factor; those in between, partly."""

    def check(self, num_channels: int) -> None:
        """Raises InputError where YaRN is not defined, or not the same in every program."""
        turn = 2 * math.pi * self.beta_slow
        if not 0 < self.beta_slow <= self.beta_fast:
            raise InputError(
                f"model.rope.beta_slow={self.beta_slow}: must be above 0 and no more than "
                f"model.rope.beta_fast={self.beta_fast}"
            )
        if self.original_length < turn:
            raise InputError(
                f"model.rope.original_length={self.original_length}: must be at least "
                f"2 pi beta_slow = {turn:.4g}, one position for each radian of the slow turns"
            )
        validate(self, "model.rope")
        low, high = self._bounds(num_channels)
        if low > high:
            raise InputError(
                f"model.rope.original_length={self.original_length}: too long for "
                f"model.rope.theta={self.theta}, no channel would be slowed down"
            )

    def stretch(self, inverse_h: jax.Array) -> jax.Array:
        """Returns the angles per position [h / 2], fast channels first, for the longer context."""
        num_channels = inverse_h.shape[0]
        low, high = self._bounds(num_channels)
        ramp_h = (jnp.arange(num_channels, dtype=jnp.float32) - low) / max(high - low, 1e-3)
        slowed_h = jnp.clip(ramp_h, 0.0, 1.0)
        return inverse_h * (1.0 - slowed_h) + inverse_h / self.factor * slowed_h

    def _bounds(self, num_channels: int) -> tuple[int, int]:
        """Returns the channels at which the slowing begins and is complete."""

        def channel(num_turns: float) -> float:
            """Returns the fractional channel that turns so often within the original length."""
            period = self.original_length / (num_turns * 2 * math.pi)
            return num_channels * math.log(period) / math.log(self.theta)

        low = max(math.floor(channel(self.beta_fast)), 0)
        return low, min(math.ceil(channel(self.beta_slow)), 2 * num_channels - 1)

    @property
    def magnitude(self) -> float:
        """The factor of sine and cosine, by which attention stays as sharp."""
        return 0.1 * math.log(self.factor) + 1.0


def rope_table(
    positions_bt: jax.Array, head_dim: int, rope: Rope | Yarn
) -> tuple[jax.Array, jax.Array]:
    """Returns (sin, cos) [b, t, h / 2] in float32 of the angles at these positions."""
    inverse_h = rope.theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    magnitude = 1.0
    if isinstance(rope, Yarn):
        inverse_h, magnitude = rope.stretch(inverse_h), rope.magnitude
    angles_bth = positions_bt.astype(jnp.float32)[:, :, None] * inverse_h[None, None, :]
    return magnitude * jnp.sin(angles_bth), magnitude * jnp.cos(angles_bth)


def rotate(x_btnh: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns the input turned in float32, half-split as in NeoX; one row may serve the batch."""
    sin, cos = (table_bth[:, :, None, :] for table_bth in rope)
    first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_btnh.dtype)
