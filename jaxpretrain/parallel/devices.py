"""What an accelerator can do: its peak FLOP/s, which MFU is measured against, and its memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Dense bfloat16 FLOP/s of one JAX device by `device.device_kind`, from the vendors' data sheets;
# where a sheet prints only the figure with sparsity, half of it. The names are matched exactly:
# a part of a GPU (MIG) or a cut-down model has another name, and no MFU is better than a wrong one.
_PEAK_BF16_FLOPS: dict[str, float] = {
    # NVIDIA A100 and A800 data sheets
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A800-SXM4-80GB": 312e12,
    # NVIDIA H100 data sheet: 1,979, 1,671 and 1,513 TFLOPS with sparsity
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    # NVIDIA H200 and GH200 data sheets
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA GH200 480GB": 989.5e12,
    # NVIDIA Blackwell architecture brief: HGX B200 at 1,000 W, GB200 at 1,200 W per GPU
    "NVIDIA B200": 2250e12,
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
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
}

GIB = 2**30

MEMORY_FRACTION = 0.9
"""Share of a GPU's memory that JAX is told to take. Its default of 0.75 would leave 20 GB of an
H100 idle. What stays outside: the CUDA context, NCCL's buffers, the handles of cuBLAS and cuDNN,
2 to 5 GB together. NVIDIA's JAX-Toolbox sets 0.9 too."""


def use_most_memory() -> None:
    """Sets that share, unless the user has set one. Call it before JAX starts."""
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(MEMORY_FRACTION))


def peak_flops(device_kind: str, dtype: DTypeLike) -> float | None:
    """Peak dense FLOP/s of one JAX device (`device.device_kind`) for matrices of `dtype`.

    None when it is not known: for a CPU, an unlisted accelerator, or a type other than bfloat16.
    """
    if jnp.dtype(dtype) != jnp.bfloat16:
        return None
    return _PEAK_BF16_FLOPS.get(device_kind)


def memory_limit(
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm] - jaxlib comes without stubs
) -> int | None:
    """Bytes that the arrays and programs of `device` may take together; None: nobody knows.

    The devices of a CPU share its host's memory, a container's share of it where there is one.
    """
    if device.platform != "cpu":
        return (memory_in_use(device) or {}).get("bytes_limit")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total // jax.local_device_count("cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had, or a compiler found, no room for what was to run."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def peak_memory() -> dict[str, int]:
    """Bytes that were held at once at most: `device`, by the first one of this process, where its
    backend keeps an account; `host`, by the process itself.
    """
    used = memory_in_use(jax.local_devices()[0]) or {}
    device = {"device": used["peak_bytes_in_use"]} if "peak_bytes_in_use" in used else {}
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return device | {"host": kibibytes * (1 if sys.platform == "darwin" else 1024)}


def memory_in_use(
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm] - jaxlib comes without stubs
) -> dict[str, int] | None:
    """Bytes of `device`'s own memory: `bytes_in_use`, `peak_bytes_in_use`, `bytes_limit`.

    The peak is that of the whole process. A backend without one of the numbers leaves it out;
    None when it keeps no account at all, as the CPU's.
    """
    try:
        stats = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # a backend that does not implement it
        return None
    if not stats:
        return None
    names = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
    return {name: int(stats[name]) for name in names if name in stats}
