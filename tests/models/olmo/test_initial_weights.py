import dataclasses

import jax
import numpy as np
import pytest

from jaxpretrain.models.olmo.initial_weights import FullMegatron, Mitchell, Normal
from tests.models.olmo.conftest import OLMO_1, build

WIDE = dataclasses.replace(OLMO_1, d_model=128, d_ff=192, num_layers=3, embedding_rows=256)


@pytest.mark.parametrize(
    ("init", "stds"),
    [
        (
            Normal(std=0.05),
            dict.fromkeys(("embed", "head", "query", "gate", "output", "down"), 0.05),
        ),
        (
            Mitchell(),
            {
                "embed": 128**-0.5,
                "head": 128**-0.5,
                "query": 128**-0.5,
                "gate": 128**-0.5,
                "output": [(2 * 128 * layer) ** -0.5 for layer in (1, 2, 3)],
                "down": [(2 * 192 * layer) ** -0.5 for layer in (1, 2, 3)],
            },
        ),
        (
            FullMegatron(std=0.05),
            {
                "embed": 0.05,
                "head": 128**-0.5,
                "query": 0.05,
                "gate": 0.05,
                "output": 0.05 / 6**0.5,
                "down": 0.05 / 6**0.5,
            },
        ),
    ],
)
def test_initial_weights_have_olmos_standard_deviations(init, stds):
    config = dataclasses.replace(WIDE, init=init)
    params = jax.jit(build(config).init)(jax.random.key(1))
    block = params["blocks"]["0"]
    same = {"key": "query", "value": "query", "up": "gate"}
    for name in (*stds, *same):
        std = stds[same.get(name, name)]
        if name in ("embed", "head"):
            stack = next(iter(params[name].values()))[None]
        else:
            stack = block[name]["kernel"]
        stack = np.asarray(stack, np.float64)
        std = np.broadcast_to(std, len(stack))
        # 16,384 draws or more: the estimate is good to 0.6 %.
        np.testing.assert_allclose(stack.std(axis=(1, 2)), 0.98658 * std, rtol=0.025)
        largest = np.abs(stack).max(axis=(1, 2))
        assert np.all(largest <= 3.0 * std * (1 + 1e-6)) and np.all(largest > 2.8 * std)
