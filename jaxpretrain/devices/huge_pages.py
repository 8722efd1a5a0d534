"""Huge pages for the CPU backend.

XLA's CPU backend allocates the buffers of a step when it begins and frees them when it ends. glibc
gives such large blocks back to the kernel, which hands out zeroed pages anew in the next step. With
pages of 4 KiB that is a third of the time of a small model's step (71,000 page faults); with huge
pages it is a few percent. glibc asks for them when a tunable says so at program start.
"""

import importlib.util
import os
import sys
from pathlib import Path

_TUNABLE = "glibc.malloc.hugetlb=1"
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this program again, in the same process, with huge pages for large allocations.

    Only on Linux, where JAX will run on the CPU, the kernel lets programs ask for huge pages, and
    the user has not set GLIBC_TUNABLES; else, and the second time, nothing happens. Call it first.
    """
    if "GLIBC_TUNABLES" in os.environ or not sys.platform.startswith("linux") or not _only_cpu():
        return
    try:
        allowed = "[never]" not in _KERNEL_SETTING.read_text()
    except OSError:
        return
    if allowed:
        os.environ["GLIBC_TUNABLES"] = _TUNABLE
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def has_huge_pages() -> bool:
    """Returns True where this program was started with huge pages for large allocations."""
    return _TUNABLE in os.environ.get("GLIBC_TUNABLES", "")


def _only_cpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    return all(importlib.util.find_spec(name) is None for name in plugins)
