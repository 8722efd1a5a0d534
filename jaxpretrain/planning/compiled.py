"""The memory of real training steps on a machine, from its compiler; each is compiled once.

The program is the one that trains: `train.program.make_program` and `Program.compile`. Processes
side by side compile for absent devices. Their results are kept under `cache_dir()/plans`, by what
they depend on: the config, the machine, the versions of the compiler and this package's own code.
"""

import hashlib
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import jax
from jax.errors import JaxRuntimeError

import jaxpretrain
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import checked, read_object, to_dict
from jaxpretrain.devices.memory import is_out_of_memory
from jaxpretrain.evals.held_out import HeldOut
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.planning.audit import Audit, audit
from jaxpretrain.planning.machines import Machine, Target, open_machine
from jaxpretrain.storage.files import cache_dir, write_atomically
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import Memory, Program, make_program, measured
from jaxpretrain.train.workdir import installed_versions

_NUM_BUFFERS = 12
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "libtpu", "flax")


@dataclass(frozen=True)
class Buffer:
    """A piece of memory that holds values of these shapes, one at a time."""

    bytes: int
    shapes: str


@dataclass(frozen=True)
class Compiled:
    """The result of compiling a step."""

    total: int
    """Bytes that a device holds at its peak."""
    memory: Memory | None
    """The parts of the total; None where the compiler refused the step, giving only the total."""
    buffers: tuple[Buffer, ...]
    """The largest buffers besides parameters and moments; () where the compiler lists none."""
    seconds: float
    """Seconds of compilation."""
    audit: Audit | None = None
    """The audit of the compiled step; None where the compiler refused it."""

    def fits(self, limit: int) -> bool:
        """Returns True if `limit` bytes suffice and the compiler did not refuse the step."""
        return self.memory is not None and self.total <= limit


OnCompiled = Callable[[Resolved, Compiled], None]
"""A function that a compiler calls with each result, in the order of the experiments."""


def compile_step(experiment: Resolved, machine: Machine, *, buffers: bool = False) -> Compiled:
    """Compiles the training step for the machine; InputError where sizes do not fit together."""
    start = time.monotonic()
    program = make_program(experiment, machine.devices)
    options = dict(machine.compiler_options)
    with tempfile.TemporaryDirectory() as folder:
        if buffers:
            options |= {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = program.compile(options)
        except JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            needed = _refused_bytes(program, str(error))
            return Compiled(needed, None, (), time.monotonic() - start)
        memory, found = measured(program, compiled), _largest_buffers(Path(folder))
    seconds = time.monotonic() - start
    audited = audit(program, compiled, machine.num_hosts)
    return Compiled(memory.total, memory, found, seconds, audited)


def eval_bytes(experiment: Resolved, machine: Machine) -> int:
    """Returns the bytes that a device holds while held-out loss is computed, state included."""
    program = make_program(experiment, machine.devices)
    held_out = HeldOut(program.setting(data=None, eval_sets=[]))
    held_out.compile()
    stats = held_out.compiled.memory_analysis()
    assert stats is not None
    return _state_bytes(program) + stats.temp_size_in_bytes


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
        self._where = target, dtype
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
        paths = [_path(experiment, self._where[0]) for experiment in experiments]
        kept = {path: result for path in paths if (result := _kept(path)) is not None}
        futures = {
            path: self._executor.submit(_compile, experiment, *self._where)
            for path, experiment in zip(paths, experiments, strict=True)
            if path not in kept
        }
        for path, experiment in zip(paths, experiments, strict=True):
            if path not in kept:
                kept[path] = futures[path].result()
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps(asdict(kept[path])))
            self._on_compiled(experiment, kept[path])
        return [kept[path] for path in paths]

    def eval_bytes(self, experiment: Resolved) -> int:
        """Returns the bytes that a device holds while held-out loss is computed; keeps nothing."""
        return self._executor.submit(_eval_bytes, experiment, *self._where).result()


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
    described = [to_dict(experiment), target.name, installed_versions(_PACKAGES), _code()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "plans" / f"{digest[:32]}.json"


def _kept(path: Path) -> Compiled | None:
    """Returns the result of an earlier compilation, or None where it is missing or damaged."""
    try:
        return checked(Compiled, read_object(path), path)
    except InputError:
        return None


@cache
def _code() -> str:
    """Returns a digest of this package's source, so that a changed model is compiled anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(jaxpretrain.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _refused_bytes(program: Program, message: str) -> int:
    """Returns the bytes that a compiler names when it refuses a step.

    Compilers for TPUs name the whole, after "Used", or the temporaries alone, in parentheses.
    """
    found = re.search(r"\(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT])", message)
    assert found is not None, message
    size, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(size) * _UNITS[unit]) + (_state_bytes(program) if found[1] else 0)


def _state_bytes(program: Program) -> int:
    return sharded_bytes(jax.tree.leaves((program.state, program.batch)))


def _largest_buffers(folder: Path) -> tuple[Buffer, ...]:
    """Reads XLA's report of its memory, which it leaves in the folder."""
    row = re.compile(r"\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)([BKMG])(?:iB)?;\s*\d+;\s*\d+; (.*)")
    found: list[Buffer] = []
    for path in folder.glob("*memory-usage-report.txt"):
        # The first space is the device's main memory.
        for line in path.read_text().split("Memory Space:")[1].splitlines():
            if match := row.match(line):
                found.append(Buffer(int(float(match[1]) * _UNITS[match[2]]), match[3].strip()))
    return tuple(sorted(found, key=lambda buffer: -buffer.bytes)[:_NUM_BUFFERS])
