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

import jaxpretrain
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import checked, read_object, to_dict
from jaxpretrain.planning.compiled import Compiled, compile_step, eval_bytes
from jaxpretrain.planning.machines import Machine, open_machine
from jaxpretrain.planning.targets import Target
from jaxpretrain.storage.files import cache_dir, write_atomically
from jaxpretrain.train.resolved import Resolved

OnCompiled = Callable[[Resolved, Compiled], None]
"""A function that a compiler calls with each result, in the order of the experiments."""


class InProcessCompiler:
    """Compiles in this process, for devices that only it may use; JAX keeps what it compiles."""

    num_workers = 1
    """The number of compilations that run at a time."""

    def __init__(self, machine: Machine, on_compiled: OnCompiled) -> None:
        self._machine = machine
        self._on_compiled = on_compiled

    def compile(self, experiments: Sequence[Resolved]) -> list[Compiled]:
        """Returns the compiled memory of each experiment, in the order given."""
        results = []
        for experiment in experiments:
            results.append(compile_step(experiment, self._machine))
            self._on_compiled(experiment, results[-1])
        return results

    def eval_bytes(self, experiment: Resolved) -> int:
        """Returns the bytes that a device holds while held-out loss is computed."""
        return eval_bytes(experiment, self._machine)


class ProcessPoolCompiler:
    """Compiles in worker processes and keeps the results on the disk. Use it in a `with`."""

    def __init__(
        self, target: Target, dtype: str, num_workers: int, on_compiled: OnCompiled
    ) -> None:
        self.num_workers = num_workers
        self._target = target
        self._dtype = dtype
        self._on_compiled = on_compiled
        # Spawned: a process that has started JAX cannot be forked.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(num_workers, mp_context=context)

    def __enter__(self) -> "ProcessPoolCompiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def compile(self, experiments: Sequence[Resolved]) -> list[Compiled]:
        """Returns the kept or compiled memory of each experiment, in the order given."""
        paths = [_path(experiment, self._target) for experiment in experiments]
        kept = [_kept(path) for path in paths]
        futures = {
            path: self._executor.submit(_compile, experiment, self._target, self._dtype)
            for path, result, experiment in zip(paths, kept, experiments, strict=True)
            if result is None
        }
        results = []
        for path, result, experiment in zip(paths, kept, experiments, strict=True):
            if result is None:
                result = futures[path].result()
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps(asdict(result)))
            self._on_compiled(experiment, result)
            results.append(result)
        return results

    def eval_bytes(self, experiment: Resolved) -> int:
        """Returns the bytes that a device holds while held-out loss is computed; keeps nothing."""
        return self._executor.submit(_eval_bytes, experiment, self._target, self._dtype).result()


Compiler = InProcessCompiler | ProcessPoolCompiler


@contextmanager
def open_compiler(
    machine: Machine, dtype: str, num_workers: int, on_compiled: OnCompiled
) -> Iterator[Compiler | None]:
    """Yields the compiler for the machine, or None where nothing compiles for it."""
    if not machine.compiles:
        yield None
    elif machine.target.platform == "local":
        yield InProcessCompiler(machine, on_compiled)
    else:
        with ProcessPoolCompiler(machine.target, dtype, num_workers, on_compiled) as compiler:
            yield compiler


_machine = cache(open_machine)  # opened once in each worker


def _compile(experiment: Resolved, target: Target, dtype: str) -> Compiled:
    return compile_step(experiment, _machine(target, dtype), buffers=True)


def _eval_bytes(experiment: Resolved, target: Target, dtype: str) -> int:
    return eval_bytes(experiment, _machine(target, dtype))


def _path(experiment: Resolved, target: Target) -> Path:
    described = [to_dict(experiment), target.name, _versions(), _code()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "plans" / f"{digest[:32]}.json"


def _kept(path: Path) -> Compiled | None:
    """Returns the result of an earlier compilation, or None where it is missing or damaged."""
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
    """Returns a digest of this package's source, so that a changed model is compiled anew."""
    digest = hashlib.sha256()
    root = Path(jaxpretrain.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
