"""What a program sets before it computes: huge pages, what JAX may use, the cache of programs.

XLA's CPU backend allocates the buffers of a step when it begins and frees them when it ends. glibc
gives such large blocks back to the kernel, which hands out zeroed pages anew in the next step. With
pages of 4 KiB that is a third of the time of a small model's step (71,000 page faults); with huge
pages it is a few percent. glibc asks for them when a tunable says so at program start.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

from jaxpretrain.storage.files import cache_dir

MEMORY_FRACTION = 0.9
"""Share of a GPU's memory that JAX is told to take. Its default of 0.75 would leave 20 GB of an
H100 idle. What stays outside: the CUDA context, NCCL's buffers, the handles of cuBLAS and cuDNN,
2 to 5 GB together. NVIDIA's JAX-Toolbox sets 0.9 too."""

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


def use_most_memory() -> None:
    """Sets JAX's share of a GPU's memory unless the user has. Call it before JAX starts."""
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(MEMORY_FRACTION))


def prepare_environment(target: str) -> None:
    """Hides this host's accelerators from JAX for a plan, in this process and those that it starts.

    Call it before JAX is imported. For the target "local", the devices at hand, nothing changes.
    """
    if target.startswith("local"):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if cpus := re.fullmatch(r"cpu:(\d+)", target):
        os.environ["JAX_NUM_CPU_DEVICES"] = cpus[1]
    # Without it, the CUDA plugin refuses to load where there is no driver.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # Without them, libtpu asks the network where it is and serves one process at a time.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
    # Compilers warn of memory that they cannot save; the plan says the same.
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
        os.environ.setdefault(name, "3")


def keep_compiled() -> None:
    """Turns on the cache of compiled programs. Call it before the first compilation."""
    import jax  # not with this module, which comes before it

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _only_cpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    return all(importlib.util.find_spec(name) is None for name in plugins)
