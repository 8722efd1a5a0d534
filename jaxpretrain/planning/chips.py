"""What one device of a machine offers: memory, and the rates of its arithmetic, memory and links.

Peaks of arithmetic are not repeated here: `parallel.devices` has them by device kind. What is at
hand, a CPU above all, is measured or asked instead.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel import devices


@dataclass(frozen=True)
class Chip:
    """One device, as JAX counts them."""

    name: str
    platform: Literal["gpu", "tpu", "cpu"]
    device_kind: str  # as JAX calls it
    memory_bytes: int  # what the device reports in all
    usable: float  # share of it that programs may use
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s in one direction, all links to devices of its host or slice
    network_bandwidth: float  # bytes/s in one direction, its share of what leaves host or slice
    devices_per_host: int
    source: str
    measured_flops: float | None = None  # FLOP/s that matrix products reach; None: see peak_flops

    @property
    def usable_bytes(self) -> int:
        """What the programs of a run may use together."""
        return int(self.memory_bytes * self.usable)

    def peak_flops(self, dtype: DTypeLike) -> float:
        """Dense FLOP/s of matrix products of `dtype`, as XLA computes them by default.

        By default, NVIDIA GPUs multiply float32 as TF32, at half the rate of bfloat16 (A100, H100
        and B200 data sheets), and TPUs round it to bfloat16.
        """
        if self.measured_flops is not None:
            return self.measured_flops
        peak = devices.peak_flops(self.device_kind, jnp.bfloat16)
        assert peak is not None, f"parallel.devices has no peak of {self.device_kind}"
        is_tf32 = self.platform == "gpu" and jnp.dtype(dtype) == jnp.float32
        return peak / 2 if is_tf32 else peak


# GPUs: memory as cards report it; links are half of the sheets' bidirectional figures; networks are
# the vendor's own hosts, one adapter a GPU. TPUs: memory as libtpu 0.0.42 grants it to a program;
# links are half of the bidirectional figures; hosts of slices with several hosts have four chips.
_ROWS = (
    Chip(
        name="a100-40gb",
        platform="gpu",
        device_kind="NVIDIA A100-SXM4-40GB",
        memory_bytes=42_298_834_944,
        usable=devices.MEMORY_FRACTION,
        memory_bandwidth=1.555e12,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
        devices_per_host=8,
        source="NVIDIA A100 data sheet; DGX A100: 8 x 200 Gb/s; memory: OpenXLA's a100_sxm_40",
    ),
    Chip(
        name="a100-80gb",
        platform="gpu",
        device_kind="NVIDIA A100-SXM4-80GB",
        memory_bytes=85_100_068_864,
        usable=devices.MEMORY_FRACTION,
        memory_bandwidth=2.039e12,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
        devices_per_host=8,
        source="NVIDIA A100 data sheet; DGX A100: 8 x 200 Gb/s; memory: OpenXLA's a100_sxm_80",
    ),
    Chip(
        name="h100-80gb",
        platform="gpu",
        device_kind="NVIDIA H100 80GB HBM3",
        memory_bytes=84_942_979_072,
        usable=devices.MEMORY_FRACTION,
        memory_bandwidth=3.352e12,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        devices_per_host=8,
        source="NVIDIA H100 data sheet; DGX H100: 8 x 400 Gb/s; memory: OpenXLA's h100_sxm",
    ),
    Chip(
        name="h200",
        platform="gpu",
        device_kind="NVIDIA H200",
        memory_bytes=int(139.8 * devices.GIB),
        usable=devices.MEMORY_FRACTION,
        memory_bandwidth=4.8e12,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        devices_per_host=8,
        source="NVIDIA H200 data sheet; DGX H200: 8 x 400 Gb/s; memory: what CUDA reports",
    ),
    Chip(
        name="b200",
        platform="gpu",
        device_kind="NVIDIA B200",
        memory_bytes=191_514_411_008,
        usable=devices.MEMORY_FRACTION,
        memory_bandwidth=7.672e12,
        link_bandwidth=900e9,
        network_bandwidth=50e9,
        devices_per_host=8,
        source="NVIDIA DGX B200 data sheet: 8 x 400 Gb/s; memory: OpenXLA's b200",
    ),
    Chip(
        name="tpu-v5e",
        platform="tpu",
        device_kind="TPU v5 lite",
        memory_bytes=int(15.75 * devices.GIB),
        usable=1.0,
        memory_bandwidth=819e9,
        link_bandwidth=200e9,
        network_bandwidth=3.125e9,
        devices_per_host=4,
        source="Cloud TPU documentation, TPU v5e: 400 GB/s of links, 6.4 Tb/s of network a pod",
    ),
    Chip(
        name="tpu-v5p",
        platform="tpu",
        device_kind="TPU v5",
        memory_bytes=int(95.74 * devices.GIB),
        usable=1.0,
        memory_bandwidth=2.765e12,
        link_bandwidth=600e9,
        network_bandwidth=6.25e9,
        devices_per_host=4,
        source="Cloud TPU documentation, TPU v5p: 1,200 GB/s of links, 50 Gb/s of network a chip",
    ),
    Chip(
        name="tpu-v6e",
        platform="tpu",
        device_kind="TPU v6 lite",
        memory_bytes=int(31.25 * devices.GIB),
        usable=1.0,
        memory_bandwidth=1.638e12,
        link_bandwidth=400e9,
        network_bandwidth=12.5e9,
        devices_per_host=4,
        source="Cloud TPU documentation, TPU v6e: 800 GB/s of links, 25.6 Tb/s of network a pod",
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ROWS}
"""The devices that targets name."""


def chip_of(device: Any, num_devices: int, dtype: DTypeLike) -> Chip:
    """What a device at hand offers, when all `num_devices` of its host work at once.

    A GPU or TPU is looked up and asked for its memory; a CPU is measured.

    Raises:
      InputError: the device is an accelerator that the table lacks.
    """
    if device.platform == "cpu":
        return measure_local(num_devices, dtype)
    for chip in CHIPS.values():
        if chip.device_kind == device.device_kind:
            limit = devices.memory_limit(device)
            return chip if limit is None else replace(chip, memory_bytes=limit, usable=1.0)
    known = ", ".join(chip.device_kind for chip in CHIPS.values())
    raise InputError(f"cannot plan for devices of kind {device.device_kind}; known are {known}")


def measure_local(num_devices: int = 1, dtype: DTypeLike = jnp.float32) -> Chip:
    """This host's CPU as `num_devices` devices that share it; takes about a second."""
    memory = devices.memory_limit(jax.local_devices(backend="cpu")[0])
    assert memory is not None  # of the host
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
        memory_bytes=memory,
        usable=0.9,  # Python, data and the kernel's cache need some
        memory_bandwidth=bandwidth / num_devices,
        # A collective of virtual devices reads one's memory and writes another's.
        link_bandwidth=bandwidth / 2 / num_devices,
        network_bandwidth=bandwidth / 2 / num_devices,
        devices_per_host=num_devices,
        source="measured on this host",
        measured_flops=flops / num_devices,
    )


def _seconds(run: Callable[[], Any], budget: float = 0.4) -> float:
    """Shortest time of one call, of as many as fit into `budget` seconds after the first two."""
    for _ in range(2):
        jax.block_until_ready(run())
    times = []
    end = time.perf_counter() + budget
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)
