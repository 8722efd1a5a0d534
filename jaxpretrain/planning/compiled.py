"""The memory of the real training step on a machine, from its compiler.

The program is the one that trains: `train.program.make_program` and `Program.compile`.
"""

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.errors import JaxRuntimeError

from jaxpretrain.devices.memory import is_out_of_memory
from jaxpretrain.evals.held_out import HeldOut
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.planning.machines import Machine
from jaxpretrain.train.memory import Memory, measured
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.resolved import Resolved

_NUM_BUFFERS = 12
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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
    """The parts of the total; None where the compiler refused the step as too large. Then `total`
    is the number that it gave."""
    buffers: tuple[Buffer, ...]
    """The largest buffers besides parameters and moments; () where the compiler lists none."""
    seconds: float
    """Seconds of compilation."""

    def fits(self, limit: int) -> bool:
        """Returns True if `limit` bytes suffice and the compiler did not refuse the step."""
        return self.memory is not None and self.total <= limit


def compile_step(experiment: Resolved, machine: Machine, *, buffers: bool = False) -> Compiled:
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


def eval_bytes(experiment: Resolved, machine: Machine) -> int:
    """Returns the bytes that a device holds while held-out loss is computed, state included."""
    program = make_program(experiment, machine.devices)
    held_out = HeldOut(program.setting(data=None, eval_sets=[]))
    held_out.compile()
    stats = held_out.compiled.memory_analysis()
    assert stats is not None
    return _state_bytes(program) + stats.temp_size_in_bytes


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
        text = path.read_text().split("Memory Space:")[1]
        found += [
            Buffer(int(float(match[1]) * _UNITS[match[2]]), match[3].strip())
            for line in text.splitlines()
            if (match := row.match(line))
        ]
    return tuple(sorted(found, key=lambda buffer: -buffer.bytes)[:_NUM_BUFFERS])
