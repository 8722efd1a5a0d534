"""The probe: what the layers show on a few examples of the batch, a program of its own.

Training does not depend on it: the step is the same whether it is ever run, and how often.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxpretrain.models.contract import Batch
from jaxpretrain.train.program import Program

Probe = Callable[[Any, Batch], dict[str, jax.Array]]
"""(parameters, the batch of a step) -> arrays [layers] by name."""


def compile_probe(program: Program) -> Probe:
    """Compiles the model's signals for the first example of each data-parallel device."""
    layout, model = program.layout, program.model

    def probe(params: Any, batch: Batch) -> dict[str, jax.Array]:
        examples = {
            name: layout.constrain_batch(x.reshape(layout.num_data, -1, *x.shape[1:])[:, 0])
            for name, x in batch.items()
        }
        return model.signals(params, examples, jax.random.key(0))

    jitted = jax.jit(probe, out_shardings=layout.replicated)
    return jitted.lower(program.state.params, program.batch).compile()
