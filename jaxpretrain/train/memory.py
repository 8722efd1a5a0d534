"""The memory of a device that the training step needs, from its compiled program."""

from dataclasses import asdict, dataclass
from typing import Any

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import GIB
from jaxpretrain.devices.memory import memory_limit
from jaxpretrain.parallel.mesh import sharded_bytes
from jaxpretrain.train.program import Program


@dataclass(frozen=True)
class Memory:
    """The bytes of one device at the peak of the step, by their use."""

    parameters: int
    optimizer: int
    """Moments, and the average of the weights."""
    gradients: int
    """A float32 number for each parameter; two where the microbatch's are added to a sum."""
    activations: int
    """Forward and backward pass, with gathered weights and communication."""
    other: int
    """The batch, counters and the program itself."""

    @property
    def total(self) -> int:
        """All bytes together."""
        return sum(asdict(self).values())

    def describe(self) -> str:
        """Returns one line, in GiB."""
        listed = ", ".join(f"{part} {size / GIB:.2f}" for part, size in asdict(self).items())
        return f"{self.total / GIB:.2f} GiB per device ({listed})"


def state_bytes(program: Program) -> tuple[int, int]:
    """Returns the bytes of a device for parameters, and for moments with the average."""
    state = program.state
    parameters = sharded_bytes(jax.tree.leaves(state.params))
    return parameters, sharded_bytes(jax.tree.leaves((state.optimizer, state.ema)))


def num_gradients(program: Program) -> int:
    """Returns the number of gradients that a parameter has at a time."""
    return 2 if program.num_microbatches > 1 else 1  # the sum, and that of one microbatch


def measured(program: Program, compiled: jax.stages.Compiled) -> Memory:
    """Returns the memory of the compiled step of a program, as the compiler planned it."""
    stats: Any = compiled.memory_analysis()
    parameters, optimizer = state_bytes(program)
    arguments = stats.argument_size_in_bytes
    if program.layout.mesh.devices.flat[0].platform == "tpu":
        # Temporaries are counted one by one there; the peak knows which of them share memory.
        working = stats.peak_memory_in_bytes - arguments
    else:
        grown = stats.output_size_in_bytes - stats.alias_size_in_bytes
        working = stats.temp_size_in_bytes + grown
    gradients = min(parameters * num_gradients(program), working)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        gradients=gradients,
        activations=working - gradients,
        other=arguments - parameters - optimizer + stats.generated_code_size_in_bytes,
    )


def require_fit(program: Program, compiled: jax.stages.Compiled) -> Memory:
    """Returns the memory of a step; InputError, before there is any state, if it does not fit."""
    memory = measured(program, compiled)
    limit = memory_limit(program.layout.mesh.local_devices[0])
    if limit is not None and memory.total > limit:
        raise InputError(
            f"the step does not fit: it takes {memory.describe()} of the {limit / GIB:.2f} GiB "
            f"there are, with train.microbatch_size={program.microbatch_size} and "
            f"model.remat={program.experiment.model.remat}; --config.train.microbatch_size=auto "
            "and --config.model.remat=auto choose what fits, python -m jaxpretrain.plan explains"
        )
    return memory
