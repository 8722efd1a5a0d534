"""Compiles many steps: in processes side by side, and each only once.

Results are kept under `cache_dir()/plans`, by what they depend on: the config, the machine, the
versions of the compiler and of this package's own code.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import jaxpretrain
from jaxpretrain.config.documents import checked, read_object
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import to_dict
from jaxpretrain.planning.compiled import (
    Compiled,
    compile_step,
    eval_bytes,
)
from jaxpretrain.planning.machines import Machine, open_machine
from jaxpretrain.planning.targets import Target
from jaxpretrain.storage.cache import cache_dir
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.train.experiment import Experiment

Done = Callable[[Experiment, Compiled], None]
"""Told of each compilation, in their order."""


class Compiler(Protocol):
    """Compiles training steps for one machine."""

    num_workers: int

    def compile(self, experiments: Sequence[Experiment], done: Done) -> list[Compiled]:
        """What each takes, in their order."""
        ...

    def eval_bytes(self, experiment: Experiment) -> int:
        """What a device holds while the experiment's held-out loss is computed."""
        ...


class Here:
    """Compiles in this process, for devices that only it may use; JAX keeps what it compiles."""

    num_workers = 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def compile(self, experiments: Sequence[Experiment], done: Done) -> list[Compiled]:
        """One after the other."""
        results = []
        for experiment in experiments:
            results.append(compile_step(experiment, self._machine))
            done(experiment, results[-1])
        return results

    def eval_bytes(self, experiment: Experiment) -> int:
        """State and evaluation together."""
        return eval_bytes(experiment, self._machine)


class Pool:
    """Compiles in processes of its own, and remembers. Use it in a `with`."""

    def __init__(self, target: Target, dtype: str, num_workers: int) -> None:
        self.num_workers = num_workers
        self._target = target
        # Spawned: a process that has started JAX cannot be forked.
        self._executor = ProcessPoolExecutor(
            num_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_open,
            initargs=(target, dtype),
        )

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def compile(self, experiments: Sequence[Experiment], done: Done) -> list[Compiled]:
        """As many at a time as there are workers."""
        paths = [_path(experiment, self._target) for experiment in experiments]
        kept = [_kept(path) for path in paths]
        futures = {
            index: self._executor.submit(_compile, experiment)
            for index, experiment in enumerate(experiments)
            if kept[index] is None
        }
        results = []
        for index, (path, result) in enumerate(zip(paths, kept, strict=True)):
            if result is None:
                result = futures[index].result()
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps(asdict(result)))
            done(experiments[index], result)
            results.append(result)
        return results

    def eval_bytes(self, experiment: Experiment) -> int:
        """State and evaluation together."""
        return self._executor.submit(_eval_bytes, experiment).result()


@contextmanager
def open_compiler(
    target: Target, machine: Machine, dtype: str, num_workers: int
) -> Iterator[Compiler | None]:
    """What compiles for the machine; None where nothing does."""
    if not machine.compiles:
        yield None
    elif target.platform == "local":
        yield Here(machine)
    else:
        with Pool(target, dtype, num_workers) as pool:
            yield pool


_machine: Machine | None = None  # of a worker process


def _open(target: Target, dtype: str) -> None:
    global _machine
    _machine = open_machine(target, dtype)


def _compile(experiment: Experiment) -> Compiled:
    assert _machine is not None
    return compile_step(experiment, _machine, buffers=True)


def _eval_bytes(experiment: Experiment) -> int:
    assert _machine is not None
    return eval_bytes(experiment, _machine)


def _path(experiment: Experiment, target: Target) -> Path:
    described = [to_dict(experiment), target.name, _versions(), _code()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "plans" / f"{digest[:32]}.json"


def _kept(path: Path) -> Compiled | None:
    """What an earlier compilation has told; None where there is none or its file is damaged."""
    try:
        return checked(Compiled, read_object(path), path)
    except InputError:
        return None


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "libtpu", "flax"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@cache
def _code() -> str:
    """A digest of this package's source, so that a changed model is compiled anew."""
    digest = hashlib.sha256()
    root = Path(jaxpretrain.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
