"""OLMo's initialisations: the standard deviation of each weight, and where its draws are cut.

Source: allenai/OLMo `olmo/initialization.py`.
"""

from dataclasses import dataclass
from typing import Annotated

import jax

from jaxpretrain.config.ranges import Between, Positive

Std = Annotated[float, Between(0, 100, "(]")]
"""The type of a field that holds a standard deviation."""

Cutoff = Annotated[float, Positive] | None
"""The type of a field that holds a number of standard deviations."""


@dataclass(frozen=True)
class Normal:
    """One standard deviation for all weights (OLMo 2 and 3)."""

    std: Std = 0.02
    """The standard deviation."""
    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""


@dataclass(frozen=True)
class Mitchell:
    """Standard deviations that follow from the number of inputs and the depth (OLMo 1)."""

    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""


@dataclass(frozen=True)
class FullMegatron:
    """One standard deviation, scaled down by sqrt(2 layers) for weights of the residual stream."""

    std: Std = 0.02
    """The standard deviation before scaling; that of the head is 1 / sqrt(inputs) instead."""
    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""


def initial_std(
    init: Normal | Mitchell | FullMegatron,
    name: str,
    fan_in: int,
    layer: jax.Array | int,
    num_layers: int,
) -> float | jax.Array:
    """Returns the standard deviation of the weight of that name, which has `fan_in` inputs.

    Names are those of the parameters; `layer` counts from the bottom, from 0.
    """
    is_residual = name in ("output", "down")  # its product is added to the residual stream
    if isinstance(init, Normal):
        return init.std
    if isinstance(init, Mitchell):
        return (2 * fan_in * (layer + 1)) ** -0.5 if is_residual else fan_in**-0.5
    if name == "head":
        return fan_in**-0.5
    return init.std / (2 * num_layers) ** 0.5 if is_residual else init.std
