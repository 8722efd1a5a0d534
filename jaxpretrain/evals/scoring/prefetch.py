"""Results that are read back some batches behind the devices, so that neither side waits."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax

T = TypeVar("T")

_MAX_IN_FLIGHT = 4


def go_on() -> None:
    """Never interrupts an evaluation."""


def read_back(outputs: Iterable[T], between_batches: Callable[[], None] = go_on) -> Iterator[T]:
    """Yields the outputs of batches in their order, on the host.

    Some more batches are asked for before the first is waited for. Values that are no arrays come
    along as they are. An exception that `between_batches` raises ends the evaluation.
    """
    waiting: deque[T] = deque()
    for output in outputs:
        waiting.append(output)
        between_batches()
        if len(waiting) > _MAX_IN_FLIGHT:
            yield jax.device_get(waiting.popleft())
    while waiting:
        yield jax.device_get(waiting.popleft())
