"""The known devices, one row for each: their speed, their memory, what their compiler asks for.

GPUs: memory as cards report it; links are half of the sheets' bidirectional figures; networks are
the vendor's own hosts, one adapter a GPU. TPUs: memory as libtpu 0.0.42 grants it to a program;
links are half of the bidirectional figures; hosts of slices with several hosts have four chips.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxpretrain.devices.startup import MEMORY_FRACTION

GIB = 2**30


@dataclass(frozen=True)
class Efficiency:
    """The shares of a device's peak FLOP/s that real programs reach."""

    products: float
    """Share of the peak that products of matrices reach while they run."""
    attention: float
    """Share of the peak that attention reaches."""
    exposed: float = 1.0
    """Share of the time of gathers and scatters that products do not hide, as compiled programs
    show it (docs/benchmarks.md)."""


@dataclass(frozen=True)
class GpuCores:
    """The numbers that XLA's GPU compiler asks for beyond memory; from OpenXLA's target configs."""

    capability: tuple[int, int]  # of CUDA, major and minor
    num_cores: int  # streaming multiprocessors
    fpus_per_core: int  # floating-point units of a multiprocessor
    clock_ghz: float
    l2_bytes: int
    shared_per_core: int  # bytes of shared memory of a multiprocessor
    shared_per_block: int  # bytes of it that a block may ask for


@dataclass(frozen=True)
class Chip:
    """The known numbers of a kind of device; JAX decides what counts as one device."""

    name: str
    """Name in `plan --target`."""
    platform: Literal["gpu", "tpu", "cpu"]
    """Platform, as the planner groups them."""
    device_kind: str
    """JAX's name of the device, `device.device_kind`."""
    peak_bf16_flops: float
    """Dense bfloat16 FLOP/s by the vendor; on a CPU, the FLOP/s that a product was measured at."""
    efficiency: Efficiency
    """Shares of the peak that explain published throughputs of such devices best, by least squares
    of scripts/compare_throughput.py, or those of the nearest relative: nothing usable is published
    of the B200 and of TPU v5e."""
    memory_bytes: int
    """Memory in bytes, as the device reports it."""
    usable: float
    """Share of the memory that programs may use."""
    memory_bandwidth: float
    """Memory bandwidth in bytes/s."""
    link_bandwidth: float
    """Bytes/s in one direction over all links to devices of its host or slice."""
    network_bandwidth: float
    """Bytes/s in one direction, its share of what leaves its host or slice."""
    devices_per_host: int
    """Devices of a host."""
    source: str
    """Origin of the numbers."""
    cores: GpuCores | None = None
    """Numbers for XLA's GPU compiler; None for other devices."""
    slice_axes: Literal[2, 3] = 2
    """Axes of a TPU slice: 3 where its links form a 3D torus."""
    compiler_options: tuple[tuple[str, bool], ...] = ()
    """Options of XLA that every step takes there, unless the config says otherwise."""

    @property
    def usable_bytes(self) -> int:
        """Bytes that the programs of a run may use together."""
        return int(self.memory_bytes * self.usable)

    def peak_flops(self, dtype: DTypeLike) -> float:
        """Returns the dense FLOP/s of matrix products of `dtype`, as XLA computes them by default.

        By default, NVIDIA GPUs multiply float32 as TF32, at half the rate of bfloat16 (A100, H100
        and B200 data sheets), and TPUs round it to bfloat16.
        """
        is_tf32 = self.platform == "gpu" and jnp.dtype(dtype) == jnp.float32
        return self.peak_bf16_flops / 2 if is_tf32 else self.peak_bf16_flops


_A100 = Chip(
    name="a100-40gb",
    platform="gpu",
    device_kind="NVIDIA A100-SXM4-40GB",
    peak_bf16_flops=312e12,
    efficiency=Efficiency(products=0.74, attention=0.31, exposed=0.3),
    # By default XLA waits for every collective there; on Hopper it does not.
    compiler_options=(("xla_gpu_enable_latency_hiding_scheduler", True),),
    cores=GpuCores((8, 0), 108, 64, 1.41, 41_943_040, 167_936, 166_912),
    memory_bytes=42_298_834_944,
    usable=MEMORY_FRACTION,
    memory_bandwidth=1.555e12,
    link_bandwidth=300e9,
    network_bandwidth=25e9,
    devices_per_host=8,
    source="NVIDIA A100 data sheet; DGX A100: 8 x 200 Gb/s; memory: OpenXLA's a100_sxm_40",
)
_H100 = Chip(
    name="h100-80gb",
    platform="gpu",
    device_kind="NVIDIA H100 80GB HBM3",
    peak_bf16_flops=989.5e12,
    efficiency=Efficiency(products=0.66, attention=0.36, exposed=0.05),
    cores=GpuCores((9, 0), 132, 128, 1.98, 52_428_800, 233_472, 232_448),
    memory_bytes=84_942_979_072,
    usable=MEMORY_FRACTION,
    memory_bandwidth=3.352e12,
    link_bandwidth=450e9,
    network_bandwidth=50e9,
    devices_per_host=8,
    source="NVIDIA H100 data sheet; DGX H100: 8 x 400 Gb/s; memory: OpenXLA's h100_sxm",
)
_V5E = Chip(
    name="tpu-v5e",
    platform="tpu",
    device_kind="TPU v5 lite",
    peak_bf16_flops=197e12,
    efficiency=Efficiency(products=0.85, attention=0.17),
    memory_bytes=int(15.75 * GIB),
    usable=1.0,
    memory_bandwidth=819e9,
    link_bandwidth=200e9,
    network_bandwidth=3.125e9,
    devices_per_host=4,
    source="Cloud TPU documentation, TPU v5e: 400 GB/s of links, 6.4 Tb/s of network a pod",
)
_ROWS = (
    _A100,
    replace(
        _A100,
        name="a100-80gb",
        device_kind="NVIDIA A100-SXM4-80GB",
        memory_bytes=85_100_068_864,
        memory_bandwidth=2.039e12,
        source="NVIDIA A100 data sheet; DGX A100: 8 x 200 Gb/s; memory: OpenXLA's a100_sxm_80",
    ),
    _H100,
    replace(
        _H100,
        name="h200",
        device_kind="NVIDIA H200",
        memory_bytes=int(139.8 * GIB),
        memory_bandwidth=4.8e12,
        source="NVIDIA H200 data sheet; DGX H200: 8 x 400 Gb/s; memory: what CUDA reports",
    ),
    replace(
        _H100,
        name="b200",
        device_kind="NVIDIA B200",
        peak_bf16_flops=2250e12,
        cores=GpuCores((10, 0), 148, 128, 1.965, 132_644_864, 233_472, 232_448),
        memory_bytes=191_514_411_008,
        memory_bandwidth=7.672e12,
        link_bandwidth=900e9,
        source="NVIDIA DGX B200 data sheet: 8 x 400 Gb/s; memory: OpenXLA's b200",
    ),
    _V5E,
    replace(
        _V5E,
        name="tpu-v5p",
        device_kind="TPU v5",
        peak_bf16_flops=459e12,
        memory_bytes=int(95.74 * GIB),
        memory_bandwidth=2.765e12,
        link_bandwidth=600e9,
        network_bandwidth=6.25e9,
        slice_axes=3,
        source="Cloud TPU documentation, TPU v5p: 1,200 GB/s of links, 50 Gb/s of network a chip",
    ),
    replace(
        _V5E,
        name="tpu-v6e",
        device_kind="TPU v6 lite",
        peak_bf16_flops=918e12,
        memory_bytes=int(31.25 * GIB),
        memory_bandwidth=1.638e12,
        link_bandwidth=400e9,
        network_bandwidth=12.5e9,
        source="Cloud TPU documentation, TPU v6e: 800 GB/s of links, 25.6 Tb/s of network a pod",
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ROWS}
"""The devices that can be planned for, by the name that targets use."""

_OTHER_PEAKS: dict[str, float] = {
    # NVIDIA A100 and A800 data sheets
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A800-SXM4-80GB": 312e12,
    # NVIDIA H100 data sheet: 1,979, 1,671 and 1,513 TFLOPS with sparsity
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    # NVIDIA H200 and GH200 data sheets
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA GH200 480GB": 989.5e12,
    # NVIDIA Blackwell architecture brief: HGX B200 at 1,000 W, GB200 at 1,200 W per GPU
    "NVIDIA GB200": 2500e12,
    # NVIDIA L4, L40S and RTX A6000 data sheets; GA102 and Ada white papers (FP32 accumulation)
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA RTX A6000": 154.8e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    # Cloud TPU documentation, system architecture. A device is a chip, except that v2, v3 and
    # 7x show each of a chip's two TensorCores as a device, with half of the chip's peak.
    "TPU v2": 46e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
}
"""Dense bfloat16 FLOP/s of devices that can be used but not planned for, by `device.device_kind`.

From the vendors' data sheets; where a sheet prints only the figure with sparsity, half of it. The
names are matched exactly: a part of a GPU (MIG) or a cut-down model has another name, and no MFU is
better than a wrong one."""


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a JAX device (`device.device_kind`); None where the table lacks it."""
    return next((chip for chip in CHIPS.values() if chip.device_kind == device_kind), None)


def compiler_options(device_kind: str) -> dict[str, bool]:
    """Returns the options of XLA that steps take on a JAX device (`device.device_kind`)."""
    chip = chip_of(device_kind)
    return {} if chip is None else dict(chip.compiler_options)


def peak_flops(device_kind: str, dtype: DTypeLike) -> float | None:
    """Returns the peak dense FLOP/s of one JAX device (`device.device_kind`) for `dtype` matrices.

    None when it is not known: for a CPU, an unlisted accelerator, or a type other than bfloat16.
    """
    if jnp.dtype(dtype) != jnp.bfloat16:
        return None
    known = {chip.device_kind: chip.peak_bf16_flops for chip in CHIPS.values()}
    return (known | _OTHER_PEAKS).get(device_kind)
