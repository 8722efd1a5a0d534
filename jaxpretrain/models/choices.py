"""The choices of how a layer is computed, and the checks of sizes that all families share."""

from typing import Literal

from jaxpretrain.config.errors import InputError

AttentionKernel = Literal["xla", "xla_blocks", "xla_blocks_float32", "cudnn", "splash"]
"""The implementations of attention."""

AttentionChoice = Literal["auto", "xla", "xla_blocks", "cudnn", "splash"]
"""The kernels that a config may name; auto becomes a kernel when the model is built."""

RematPolicy = Literal["none", "full", "dots", "attention"]
"""The activations that are recomputed in the backward pass."""

RematChoice = Literal["auto", "none", "full", "dots", "attention"]
"""The policies that a config may name; auto becomes a policy before the model is built."""


def require_policy(choice: RematChoice) -> RematPolicy:
    """Returns the policy that a config names; InputError where the config leaves it open."""
    if choice != "auto":
        return choice
    raise InputError("model.remat=auto: jaxpretrain.main and .plan choose; set it")


def require_divisible(*divisions: tuple[int, int, str]) -> None:
    """Raises InputError for the first (value, divisor, words) with a remainder."""
    for value, by, what in divisions:
        if by < 1 or value % by:
            raise InputError(f"cannot divide {what}: {value} / {by}")
