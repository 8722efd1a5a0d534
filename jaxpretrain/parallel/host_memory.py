"""Host memory of the CPU backend.

XLA's CPU backend allocates the buffers of a step when it begins and frees them when it ends. glibc
gives such large blocks back to the kernel, which zeroes every page of them again for the next step:
for a small model on two cores that was a third of the step's processor time (71,000 page faults a
step against 3,000 with this setting).
"""

import ctypes
import importlib.util
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Has glibc keep freed blocks of up to 1 GiB, when JAX will run on the CPU.

    Works only before the first large allocation, so before JAX starts its backend. The process
    holds more memory than it uses at times. True when it took effect: elsewhere than on Linux with
    glibc, or with an accelerator at hand, nothing changes.
    """
    if not sys.platform.startswith("linux") or not _only_cpu():
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    options = ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, _LARGEST_KEPT), (_ARENA_MAX, 1))
    return all([libc.mallopt(option, value) for option, value in options])


def _only_cpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    return all(importlib.util.find_spec(name) is None for name in plugins)
