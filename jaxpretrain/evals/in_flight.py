"""Results are read back some batches behind what the devices are given, so that neither waits."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import jax

_MAX_IN_FLIGHT = 4


def read_back(outputs: Iterable[Any]) -> Iterator[Any]:
    """What `outputs` gives batch by batch, in the same order but on the host.

    It is asked for some batches more before the first is waited for. What is no array, such as the
    batch that a result belongs to, comes along as it is.
    """
    waiting: deque[Any] = deque()
    for output in outputs:
        waiting.append(output)
        if len(waiting) > _MAX_IN_FLIGHT:
            yield jax.device_get(waiting.popleft())
    while waiting:
        yield jax.device_get(waiting.popleft())
