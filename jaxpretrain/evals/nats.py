"""What a likelihood in nats means in other units."""

import math

_LARGEST = 700.0  # exp of more is no float


def perplexity(loss: float) -> float:
    """Of a loss in nats a token."""
    return math.exp(min(loss, _LARGEST))


def bits_per_byte(nats: float, num_bytes: float) -> float | None:
    """Of a text of so many UTF-8 bytes; None: there are none."""
    return nats / math.log(2) / num_bytes if num_bytes else None
