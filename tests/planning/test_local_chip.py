"""What is looked up, asked or measured of the devices at hand."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import CHIPS, GIB
from jaxpretrain.devices.memory import memory_limit
from jaxpretrain.planning.local_chip import find_chip, measure_local


@dataclass(frozen=True)
class Accelerator:
    """A device at hand, as far as it is asked."""

    device_kind: str
    platform: str = "gpu"
    bytes_limit: int | None = None

    def memory_stats(self) -> dict[str, int]:
        return {} if self.bytes_limit is None else {"bytes_limit": self.bytes_limit}


def test_an_accelerator_at_hand_is_asked_for_its_memory() -> None:
    known = find_chip(Accelerator("NVIDIA H200", bytes_limit=100 * GIB), 8, jnp.bfloat16)
    assert (known.name, known.usable_bytes) == ("h200", 100 * GIB)
    assert find_chip(Accelerator("NVIDIA H200"), 8, jnp.bfloat16) == CHIPS["h200"]
    with pytest.raises(InputError, match=r"kind NVIDIA T4; known are .*NVIDIA H200"):
        find_chip(Accelerator("NVIDIA T4"), 1, jnp.bfloat16)


def test_devices_of_a_cpu_share_what_is_measured() -> None:
    chip = find_chip(jax.devices()[0], 1, jnp.float32)
    assert chip.peak_flops(jnp.float32) == chip.peak_bf16_flops
    assert 1e8 < chip.peak_flops(jnp.float32) < 1e15
    assert 1e8 < chip.memory_bandwidth < 1e13
    assert 0 < chip.usable_bytes < chip.memory_bytes == memory_limit(jax.devices()[0])
    assert measure_local(4, jnp.float32).devices_per_host == 4
