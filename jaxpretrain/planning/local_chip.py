"""The chip of the devices at hand: an accelerator is looked up, a CPU is measured."""

import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import CHIPS, Chip, Efficiency
from jaxpretrain.devices.memory import memory_limit


def find_chip(
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm] - jaxlib comes without stubs
    num_devices: int,
    dtype: DTypeLike,
) -> Chip:
    """Returns the chip of a device at hand, for a host whose `num_devices` all work at once.

    A GPU or TPU is looked up and asked for its memory; a CPU is measured.

    Raises:
      InputError: the device is an accelerator that the table lacks.
    """
    if device.platform == "cpu":
        return measure_local(num_devices, dtype)
    for chip in CHIPS.values():
        if chip.device_kind == device.device_kind:
            limit = memory_limit(device)
            return chip if limit is None else replace(chip, memory_bytes=limit, usable=1.0)
    known = ", ".join(chip.device_kind for chip in CHIPS.values())
    raise InputError(f"cannot plan for devices of kind {device.device_kind}; known are {known}")


def measure_local(num_devices: int, dtype: DTypeLike) -> Chip:
    """Measures this host's CPU as `num_devices` devices that share it; takes about a second."""
    memory = memory_limit(jax.local_devices(backend="cpu")[0])
    assert memory is not None  # known for every CPU
    rows = jnp.ones((1024, 1024), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    flops = 2.0 * 1024**3 / _seconds(lambda: product(rows, rows))
    numbers = np.ones(2**25, np.float32)
    copied = np.empty_like(numbers)
    bandwidth = 2.0 * numbers.nbytes / _seconds(lambda: np.copyto(copied, numbers))
    return Chip(
        name="cpu",
        platform="cpu",
        device_kind="cpu",
        peak_bf16_flops=flops / num_devices,
        # Shares of the rate of one product alone; docs/benchmarks.md has the steps behind them.
        efficiency=Efficiency(products=0.9, attention=0.5),
        memory_bytes=memory,
        usable=0.9,  # the rest is for Python, data and the page cache
        memory_bandwidth=bandwidth / num_devices,
        # A collective between virtual devices reads and writes the same memory.
        link_bandwidth=bandwidth / 2 / num_devices,
        network_bandwidth=bandwidth / 2 / num_devices,
        devices_per_host=num_devices,
        source="measured on this host",
    )


def _seconds(run: Callable[[], object]) -> float:
    """Returns the shortest time of a call among those of 0.4 seconds, after two more."""
    for _ in range(2):
        jax.block_until_ready(run())
    times = []
    end = time.perf_counter() + 0.4
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)
