from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.olmo.block import Block
from scripts.make_golden_olmo import NATIVE, TRANSFORMERS, model_tokens
from tests.parity.models import Names, Reference, decoder, nested


@pytest.mark.parametrize("name", [*TRANSFORMERS, *NATIVE])
def test_every_layer_and_the_logits_are_theirs(name: str, reference: Reference, tmp_path: Path):
    config, table = decoder(name, tmp_path)
    names = Names.of(table, config)
    params = nested(names.to_ours(names.draw()))
    model = replace(config, dtype="float32", scan_layers=False, remat="none").build(
        {"tokens": ((24,), "int32")}, platform="cpu"
    )
    layers = []

    def keep_layers(
        next_call: Any, inputs: Any, kwargs: Any, context: nn.module.InterceptorContext
    ):
        output = next_call(*inputs, **kwargs)
        if isinstance(context.module, Block) and context.method_name == "__call__":
            layers.append(output[0])  # beside what it keeps for a cache
        return output

    with nn.intercept_methods(keep_layers):
        logits = model.logits(params, jnp.asarray(model_tokens()))
    expected = reference("models", name)
    assert len(layers) == len(expected["layers"]) == config.num_layers
    for number, (found, theirs) in enumerate(zip(layers, expected["layers"], strict=True)):
        assert np.std(theirs) > 0.3
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-4, err_msg=f"layer {number}")
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4, err_msg="logits")
