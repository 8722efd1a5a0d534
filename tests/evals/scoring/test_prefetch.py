from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.evals.contract import Interrupted
from jaxpretrain.evals.scoring.prefetch import read_back


def test_outputs_come_in_order_some_behind_what_is_dispatched():
    dispatched = []

    def outputs() -> Iterator[tuple[str, Any]]:
        for number in range(9):
            dispatched.append(number)
            yield f"batch {number}", jnp.full(2, number)

    read = []
    for name, array in read_back(outputs()):
        assert isinstance(array, np.ndarray)
        read.append((name, array.tolist()))
        assert len(read) < len(dispatched) <= len(read) + 4 or len(dispatched) == 9
    assert read == [(f"batch {number}", [number, number]) for number in range(9)]


def test_nothing_is_nothing():
    assert list(read_back([])) == []


def test_what_is_raised_between_batches_ends_it():
    def outputs() -> Iterator[int]:
        for number in range(9):
            dispatched.append(number)
            yield number

    def interrupt() -> None:
        if len(dispatched) == 3:
            raise Interrupted

    dispatched: list[int] = []
    with pytest.raises(Interrupted):
        list(read_back(outputs(), interrupt))
    assert dispatched == [0, 1, 2]
