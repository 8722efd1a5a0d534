"""What this machine offers for training, and what keeps it from that: the work of `doctor`."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path

import jax

from jaxpretrain import __version__
from jaxpretrain.config.errors import InputError, extras, install
from jaxpretrain.devices.memory import memory_limit
from jaxpretrain.parallel.distributed import find_launcher
from jaxpretrain.storage.files import cache_dir

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "clu")
_MIN_MEMORY_GIB = 2.0
_MIN_DISK_GIB = 2.0
_ACCELERATORS = {"/dev/nvidia0": "gpu", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}
"""Files of accelerators that Linux shows, and the extra that brings JAX's support for them."""

_PLUGINS = {"jax[tpu]": "libtpu", "jax[cuda13]": "jax-cuda13-plugin"}
"""Requirement of JAX with an extra of its own -> the package that this extra brings."""


def examine() -> tuple[dict[str, str | list[str]], list[str]]:
    """Returns what the machine offers, by name, and what keeps it from training."""
    problems = []
    try:
        devices = jax.devices()
        limit = memory_limit(devices[0])
        memory = "unknown memory" if limit is None else f"{limit / 2**30:.1f} GiB each"
        device_text = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {memory}"
        if limit is not None and limit < _MIN_MEMORY_GIB * 2**30:
            problems.append(f"{memory} of memory: the smallest config takes {_MIN_MEMORY_GIB:g}")
        for path, extra in _ACCELERATORS.items():
            if Path(path).exists() and devices[0].platform == "cpu":
                problems.append(
                    f"{path} is an accelerator that JAX does not use: {install(extra)}, or check "
                    "its driver"
                )
    except RuntimeError as error:
        device_text = "none"
        problems.append(f"JAX finds no devices: {str(error).splitlines()[0]}")
    try:
        launcher = find_launcher(os.environ)
        launcher_text = "none; one process" if launcher is None else launcher.name
    except InputError as error:
        launcher_text = "unusable"
        problems.append(str(error))
    disk = {}
    for name, folder in (("this folder", Path.cwd()), ("cache", cache_dir())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / 2**30
        disk[name] = f"{folder}: {free:.1f} GiB free"
        if not os.access(there, os.W_OK):
            problems.append(f"{there} cannot be written")
        if free < _MIN_DISK_GIB:
            problems.append(f"{folder} has {free:.1f} GiB of free disk: a run takes some")
    found: dict[str, str | list[str]] = {
        "jaxpretrain": f"{__version__} in {Path(__file__).parents[1]}",
        "python": f"{platform.python_version()} in {sys.prefix}",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "devices": device_text,
        "launcher": launcher_text,
        "disk": [f"{name}: {text}" for name, text in disk.items()],
        "packages": [f"{name} {_version(name)}" for name in _PACKAGES],
        "extras": [f"{name}: {text}" for name, text in _extras().items()],
    }
    return found, problems


def _extras() -> dict[str, str]:
    """Returns for each extra of the package whether it is installed, or what it lacks."""
    found = {}
    for extra, requirements in extras().items():
        names = [_PLUGINS.get(each, re.split(r"[^\w.-]", each)[0]) for each in requirements]
        lacks = [name for name in names if _version(name) == "missing"]
        found[extra] = f"lacks {', '.join(lacks)}" if lacks else "installed"
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
