"""Says what a machine offers for training: python -m jaxpretrain.doctor [--json]"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from jaxpretrain import __version__
from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError, extras, install
from jaxpretrain.storage.files import cache_dir

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "clu")
_MIN_MEMORY_GIB = 2.0
_MIN_DISK_GIB = 2.0
_ACCELERATORS = {"/dev/nvidia0": "gpu", "/dev/accel0": "tpu", "/dev/vfio/0": "tpu"}
"""Files of accelerators that Linux shows, and the extra that brings JAX's support for them."""

_PLUGINS = {"jax[tpu]": "libtpu", "jax[cuda13]": "jax-cuda13-plugin"}
"""Requirement of JAX with an extra of its own -> the package that this extra brings."""


def main(argv: list[str]) -> int:
    """Prints what was found and a verdict; returns 0 where training can start, 1 otherwise."""
    flags = make_parser().parse_args(argv)
    found, problems = examine()
    if flags.json:
        print(json.dumps(found | {"problems": problems}))
        return 1 if problems else 0
    width = max(map(len, found))
    for name, value in found.items():
        first, *others = [value] if isinstance(value, str) else value
        print(f"{name:<{width}}  {first}")
        for line in others:
            print(f"{'':<{width}}  {line}")
    for problem in problems:
        print(f"problem: {problem}")
    print("verdict: not ready" if problems else "verdict: ready to train")
    return 1 if problems else 0


def make_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(prog="jaxpretrain doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def examine() -> tuple[dict[str, Any], list[str]]:
    """Returns what the machine offers, by name, and what keeps it from training."""
    import jax

    from jaxpretrain.devices.memory import memory_limit
    from jaxpretrain.parallel.distributed import find_launcher

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
    found = {
        "jaxpretrain": f"{__version__} in {Path(__file__).parent}",
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


if __name__ == "__main__":
    run(main)
