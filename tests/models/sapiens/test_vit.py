from dataclasses import replace

import jax
import numpy as np

from tests.models.sapiens.conftest import TINY, build


def test_initial_weights_are_those_of_the_reference():
    config = replace(TINY, patch_size=16, d_model=96, num_layers=4, d_ff=384, decoder_d_model=64)
    params = jax.jit(build(config, (48, 64)).init)(jax.random.key(1))
    encoder, decoder = params["encoder"], params["decoder"]
    block = encoder["blocks"]["0"]
    d = 96
    bounds = [(block[name]["kernel"], 6 / (4 * d)) for name in ("query", "key", "value")]
    bounds += [(block["output"]["kernel"], 6 / (2 * d))]
    bounds += [(block[name]["kernel"], 6 / (5 * d)) for name in ("up", "down")]
    bounds += [(encoder["patch"]["kernel"], 6 / (768 + d)), (encoder["patch"]["bias"], 1 / 768)]
    bounds += [(decoder["embed"]["kernel"], 6 / (d + 64)), (decoder["head"]["kernel"], 6 / 832)]
    for weight, square in bounds:
        largest = np.abs(weight).max()
        assert 0.9 * square**0.5 < largest <= square**0.5 * (1 + 1e-6)
        if weight.size > 1000:
            np.testing.assert_allclose(np.std(weight), (square / 3) ** 0.5, rtol=0.03)
    for name in ("up", "down"):
        np.testing.assert_allclose(np.std(block[name]["bias"]), 1e-6, rtol=0.2)
    zeros = [block[name]["bias"] for name in ("query", "key", "value", "output", "attention_norm")]
    assert not any(np.any(b) for b in [*zeros, decoder["embed"]["bias"], decoder["head"]["bias"]])
    for token in (encoder["cls"]["embedding"], decoder["mask"]["embedding"]):
        np.testing.assert_allclose(np.std(token), 0.02, rtol=0.3)
    for norm in (block["mlp_norm"], encoder["norm"], decoder["norm"]):
        assert np.all(norm["scale"] == 1.0) and not np.any(norm["bias"])
