"""The memory of the devices at hand: how much there is, and how much is used."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import jax

from jaxpretrain.parallel.chips import MEMORY_FRACTION


def use_most_memory() -> None:
    """Sets JAX's share of a GPU's memory unless the user has. Call it before JAX starts."""
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(MEMORY_FRACTION))


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
