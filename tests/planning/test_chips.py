"""The table of devices, and what is asked or measured instead."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.devices import GIB, memory_limit
from jaxpretrain.planning.chips import CHIPS, chip_of, measure_local


@dataclass(frozen=True)
class Accelerator:
    """A device at hand, as far as it is asked."""

    device_kind: str
    platform: str = "gpu"
    bytes_limit: int | None = None

    def memory_stats(self) -> dict[str, int]:
        return {} if self.bytes_limit is None else {"bytes_limit": self.bytes_limit}


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_chip_has_peaks_and_ordered_rates(chip) -> None:
    assert chip.peak_flops(jnp.bfloat16) >= chip.peak_flops(jnp.float32) > 0
    assert chip.memory_bandwidth > chip.link_bandwidth > chip.network_bandwidth > 0
    assert 0 < chip.usable_bytes <= chip.memory_bytes


def test_gpus_multiply_float32_at_half_the_rate_and_tpus_at_the_whole() -> None:
    assert CHIPS["h100-80gb"].peak_flops(jnp.float32) == 989.5e12 / 2
    assert CHIPS["tpu-v5p"].peak_flops(jnp.float32) == 459e12


def test_an_accelerator_at_hand_is_asked_for_its_memory() -> None:
    known = chip_of(Accelerator("NVIDIA H200", bytes_limit=100 * GIB), 8, jnp.bfloat16)
    assert (known.name, known.usable_bytes) == ("h200", 100 * GIB)
    assert chip_of(Accelerator("NVIDIA H200"), 8, jnp.bfloat16) == CHIPS["h200"]
    with pytest.raises(InputError, match=r"kind NVIDIA T4; known are .*NVIDIA H200"):
        chip_of(Accelerator("NVIDIA T4"), 1, jnp.bfloat16)


def test_devices_of_a_cpu_share_what_is_measured() -> None:
    chip = chip_of(jax.devices()[0], 1, jnp.float32)
    assert chip.peak_flops(jnp.float32) == chip.measured_flops
    assert 1e8 < chip.peak_flops(jnp.float32) < 1e15
    assert 1e8 < chip.memory_bandwidth < 1e13
    assert 0 < chip.usable_bytes < chip.memory_bytes == memory_limit(jax.devices()[0])
    assert measure_local(num_devices=4).devices_per_host == 4
