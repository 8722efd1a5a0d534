"""OLMo's initialisations: the standard deviation of each weight, and where its draws are cut.

Source: allenai/OLMo `olmo/initialization.py`. Weights are named as in the parameters: `embed`,
`head`, `query`, `down` and so on. The layers are counted from the bottom, from 0.
"""

from dataclasses import dataclass
from typing import Annotated

import jax

from jaxpretrain.config.ranges import Between, Positive

_RESIDUAL = ("output", "down")
"""The weights whose products are added to the residual stream."""

Std = Annotated[float, Between(0, 100, "(]")]
"""The type of a field that holds a standard deviation."""

Cutoff = Annotated[float, Positive] | None
"""The type of a field that holds a number of standard deviations; none: draws are not cut."""


@dataclass(frozen=True)
class Normal:
    """One standard deviation for all weights (OLMo 2 and 3)."""

    std: Std = 0.02
    """The standard deviation."""
    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""

    def std_of(self, name: str, fan_in: int, layer: jax.Array | int, num_layers: int) -> float:
        """Returns the standard deviation of a weight with `fan_in` inputs in one of the layers."""
        del name, fan_in, layer, num_layers
        return self.std


@dataclass(frozen=True)
class Mitchell:
    """Standard deviations that follow from the number of inputs and the depth (OLMo 1)."""

    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""

    def std_of(
        self, name: str, fan_in: int, layer: jax.Array | int, num_layers: int
    ) -> jax.Array | float:
        """Returns the standard deviation; weights of the residual stream get less with depth."""
        del num_layers
        return (2 * fan_in * (layer + 1)) ** -0.5 if name in _RESIDUAL else fan_in**-0.5


@dataclass(frozen=True)
class FullMegatron:
    """One standard deviation, scaled down by sqrt(2 layers) for weights of the residual stream."""

    std: Std = 0.02
    """The standard deviation before scaling; that of the head is 1 / sqrt(inputs) instead."""
    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""

    def std_of(self, name: str, fan_in: int, layer: jax.Array | int, num_layers: int) -> float:
        """Returns the standard deviation of a weight with `fan_in` inputs in one of the layers."""
        del layer
        if name == "head":
            return fan_in**-0.5
        return self.std / (2 * num_layers) ** 0.5 if name in _RESIDUAL else self.std
