"""What the real training step takes on a machine, from its compiler.

The program is the one that trains: `train.program.make_program` and `Program.compile`.
"""

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.errors import JaxRuntimeError

from jaxpretrain.parallel.devices import is_out_of_memory
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.planning.machines import Machine
from jaxpretrain.train.experiment import Experiment
from jaxpretrain.train.memory import Memory, measured
from jaxpretrain.train.program import Program, make_program

_NUM_BUFFERS = 12


@dataclass(frozen=True)
class Buffer:
    """Memory that values of these shapes take, one after the other."""

    bytes: int
    shapes: str


@dataclass(frozen=True)
class Compiled:
    """What compiling a step told."""

    total: int
    """Bytes of a device at its peak."""
    memory: Memory | None
    """None: the compiler refused, for it does not fit; then `total` is what it said."""
    buffers: tuple[Buffer, ...]
    """The largest, parameters and moments aside; () where the compiler does not tell."""
    seconds: float
    """That compiling took."""

    def fits(self, limit: int) -> bool:
        """Whether a device with so many bytes has room; what its compiler refused has none."""
        return self.memory is not None and self.total <= limit


def compile_step(experiment: Experiment, machine: Machine, *, buffers: bool = False) -> Compiled:
    """Compiles the training step of a resolved experiment for the machine.

    Raises:
      InputError: mesh, batch or model do not fit together.
    """
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
    return Compiled(memory.total, memory, found, time.monotonic() - start)


def eval_bytes(experiment: Experiment, machine: Machine) -> int:
    """Bytes of a device while held-out loss is computed, with the state that lies beside it."""
    from jaxpretrain.evals.held_out import HeldOut

    program = make_program(experiment, machine.devices)
    stats = HeldOut(program.setting(data=None, eval_sets=[])).compiled.memory_analysis()
    return _state_bytes(program) + stats.temp_size_in_bytes


def _refused_bytes(program: Program, message: str) -> int:
    """TPU compilers refuse what does not fit, and say how much the temporaries would take."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"\(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT])", message)
    assert found is not None, message
    size, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(size) * units[unit]) + (_state_bytes(program) if found[1] else 0)


def _state_bytes(program: Program) -> int:
    return sharded_bytes(jax.tree.leaves((program.state, program.batch)))


def _largest_buffers(folder: Path) -> tuple[Buffer, ...]:
    """From XLA's report of what uses which part of its memory."""
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    row = re.compile(r"\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)(B|KiB|MiB|GiB);\s*\d+;\s*\d+; (.*)")
    found: list[Buffer] = []
    for path in folder.glob("*memory-usage-report.txt"):
        # The first space is the device's main memory.
        text = path.read_text().split("Memory Space:")[1]
        found += [
            Buffer(int(float(match[1]) * units[match[2]]), match[3].strip())
            for line in text.splitlines()
            if (match := row.match(line))
        ]
    return tuple(sorted(found, key=lambda buffer: -buffer.bytes)[:_NUM_BUFFERS])
