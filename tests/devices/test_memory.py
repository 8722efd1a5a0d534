from types import SimpleNamespace
from typing import Any

import jax

from jaxpretrain.devices.memory import memory_in_use


def test_memory_of_a_device_that_keeps_account():
    stats = {"bytes_in_use": 1, "peak_bytes_in_use": 2, "bytes_limit": 3, "num_allocs": 4}
    device: Any = SimpleNamespace(memory_stats=lambda: stats)
    assert memory_in_use(device) == {"bytes_in_use": 1, "peak_bytes_in_use": 2, "bytes_limit": 3}


def test_memory_of_the_cpu_is_unknown():
    assert memory_in_use(jax.devices("cpu")[0]) is None


def test_memory_of_a_backend_without_the_call_is_unknown():
    def unimplemented():
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    device: Any = SimpleNamespace(memory_stats=unimplemented)
    assert memory_in_use(device) is None
