"""Results are read back some batches behind what the devices are given, so that neither waits."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from jaxpretrain.evals.contract import go_on

_MAX_IN_FLIGHT = 4


def read_back(outputs: Iterable[Any], between_batches: Callable[[], None] = go_on) -> Iterator[Any]:
    """What `outputs` gives batch by batch, in the same order but on the host.

    It is asked for some batches more before the first is waited for. What is no array, such as the
    batch that a result belongs to, comes along as it is. `between_batches` is called after each
    batch; what it raises ends the evaluation.
    """
    waiting: deque[Any] = deque()
    for output in outputs:
        waiting.append(output)
        between_batches()
        if len(waiting) > _MAX_IN_FLIGHT:
            yield jax.device_get(waiting.popleft())
    while waiting:
        yield jax.device_get(waiting.popleft())
