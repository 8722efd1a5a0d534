from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.models.sapiens.model import VitMae
from tests.models.sapiens.conftest import TINY, build, make_images, make_params


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


@pytest.mark.parametrize("head_dim", [60, 80])
def test_head_sizes_that_kernels_dislike_change_nothing(head_dim):
    config = replace(TINY, d_model=2 * head_dim, num_layers=1, num_heads=2)
    params, images = make_params(config, std=0.1), make_images()
    plain, blocks = (
        jax.jit(build(replace(config, attention=kernel)).encode)(params, images)
        for kernel in ("xla", "xla_blocks")
    )
    np.testing.assert_allclose(plain, blocks, atol=1e-5)


def test_stored_positions_stand_in_for_computed_ones():
    config = replace(TINY, positions="stored", num_layers=1)
    batch = {"images": make_images()}
    params = jax.jit(build(config).init)(jax.random.key(0))
    computed = {
        half: {name: part for name, part in parts.items() if name != "positions"}
        for half, parts in params.items()
    }

    def loss(config: VitMae) -> Any:
        return jax.jit(lambda params: build(config).loss(params, batch, jax.random.key(5))[0])

    stored = loss(config)
    expected = stored(params)
    plain = loss(replace(config, positions="sincos"))
    np.testing.assert_allclose(plain(computed), expected, rtol=1e-5)
    for half, parts in params.items():
        flipped = {"constant": parts["positions"]["constant"][:, ::-1]}
        changed = {**params, half: {**parts, "positions": flipped}}
        assert abs(stored(changed) - expected) > 1e-3
