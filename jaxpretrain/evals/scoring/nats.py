"""What a likelihood in nats means in bits."""

import math


def bits_per_byte(nats: float, num_bytes: float) -> float | None:
    """Of a text of so many UTF-8 bytes; None: there are none."""
    return nats / math.log(2) / num_bytes if num_bytes else None
