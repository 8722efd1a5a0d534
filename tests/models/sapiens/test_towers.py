from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.models.sapiens.model import VitMae
from tests.models.sapiens.conftest import TINY, build, make_images, make_params


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
