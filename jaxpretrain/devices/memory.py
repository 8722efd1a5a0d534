"""The memory of the devices at hand: how much there is, and how much is used."""

import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import jax


class Device(Protocol):
    """A device as JAX shows it, or one that is described to the compiler alone."""

    @property
    def platform(self) -> str:
        """The kind of hardware: cpu, gpu, tpu."""
        ...

    @property
    def device_kind(self) -> str:
        """The name of the chip, as its driver tells it."""
        ...

    def memory_stats(self) -> Mapping[str, int] | None:
        """Returns the account of its own memory; None where it keeps none."""
        ...


def memory_limit(device: Device) -> int | None:
    """Returns the bytes that arrays and programs on a device may take together; None: unknown.

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
    """Returns True where a device had, or a compiler found, no room for a program."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def peak_memory() -> dict[str, int]:
    """Returns the most bytes that were held at once, by `host` and `device`.

    `host` is this process; `device` is its first one, left out where its backend keeps no account.
    """
    used = memory_in_use(jax.local_devices()[0]) or {}
    device = {"device": used["peak_bytes_in_use"]} if "peak_bytes_in_use" in used else {}
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return device | {"host": kibibytes * (1 if sys.platform == "darwin" else 1024)}


def memory_in_use(device: Device) -> dict[str, int] | None:
    """Returns the bytes of a device's own memory: in use, their peak, and their limit.

    The names are `bytes_in_use`, `peak_bytes_in_use` and `bytes_limit`; the peak is that of the
    whole process. A backend without one of the numbers leaves it out. None where it keeps no
    account at all, as the CPU.
    """
    try:
        stats = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # a backend that does not implement it
        return None
    if not stats:
        return None
    names = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
    return {name: int(stats[name]) for name in names if name in stats}
