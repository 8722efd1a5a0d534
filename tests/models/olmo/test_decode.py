"""What goes on from a cache is as what is read anew."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.olmo.decoder import Decoder, DecoderModel
from jaxpretrain.parallel.mesh import Layout, Mesh
from tests.models.test_contract import DOCUMENTS, END, GROUPED, PLAIN, WINDOWS

LENGTH = 20
PROMPTS = np.array([3, 7, 12, 1])


def build(config: Decoder, **layout: Any) -> tuple[DecoderModel, Any]:
    model = config.build({"tokens": ((LENGTH,), "int32")}, platform="cpu", **layout)
    return model, jax.jit(model.init)(jax.random.key(0))


def make_tokens() -> np.ndarray:
    """Texts in which documents end, within prompts and after them."""
    tokens = np.random.default_rng(0).integers(0, END, (len(PROMPTS), LENGTH), np.int32)
    tokens[0, 1] = tokens[1, 11] = tokens[2, 3] = END
    return tokens


def make_prompts(padding: int = END) -> np.ndarray:
    tokens = make_tokens()[:, : PROMPTS.max()]
    return np.where(np.arange(PROMPTS.max()) < PROMPTS[:, None], tokens, padding)


@pytest.mark.parametrize(
    "config",
    [PLAIN, WINDOWS, GROUPED, DOCUMENTS, dataclasses.replace(GROUPED, scan_layers=False)],
    ids=["full", "windows", "grouped_yarn", "documents", "unrolled"],
)
@pytest.mark.parametrize("num_new", [1, 3])
def test_texts_go_on_as_if_read_as_a_whole(config: Decoder, num_new: int):
    model, params = build(config)
    tokens = make_tokens()
    expected = np.asarray(jax.jit(model.hidden)(params, tokens))
    hidden, cache = jax.jit(model.prefill, static_argnums=2)(params, make_prompts(), LENGTH)
    for row, length in enumerate(PROMPTS):
        np.testing.assert_allclose(hidden[row, :length], expected[row, :length], atol=1e-5)
    extend = jax.jit(model.extend)
    for first in range(0, 8 - num_new + 1, num_new):
        places = PROMPTS[:, None] + first + np.arange(num_new)
        new = np.take_along_axis(tokens, places, axis=1)
        hidden, cache = extend(params, new, cache, places[:, 0])
        np.testing.assert_allclose(
            hidden, np.take_along_axis(expected, places[:, :, None], axis=1), atol=1e-5
        )


@pytest.mark.parametrize("config", [GROUPED, DOCUMENTS], ids=["windows", "documents"])
def test_neither_padding_nor_other_rows_change_a_bit(config: Decoder):
    model, params = build(config)

    @jax.jit
    def run(prompts: jax.Array) -> jax.Array:
        _, cache = model.prefill(params, prompts, LENGTH)
        new = jnp.full((len(PROMPTS), 1), 5, jnp.int32)
        return model.extend(params, new, cache, jnp.asarray(PROMPTS))[0]

    expected = run(make_prompts())
    np.testing.assert_array_equal(run(make_prompts(padding=2)), expected)
    others = make_prompts()
    others[1:] = (others[1:] + 1) % 29
    np.testing.assert_array_equal(run(others)[0], expected[0])


def test_rows_and_heads_lie_divided():
    layout = Layout(Mesh(replica=2, fsdp=2, tensor=2).build(jax.devices()))
    model, params = build(GROUPED, constrain=layout.constrain, shard=layout.shard)
    one_device, _ = build(GROUPED)
    placed = jax.device_put(params, layout.tree(model.axes(), params))
    hidden, cache = jax.jit(model.prefill, static_argnums=2)(placed, make_prompts(), LENGTH)
    keys = cache.stacks["0"].keys_lbmsh
    assert keys.sharding.shard_shape(keys.shape) == (2, 1, 1, LENGTH, 8)
    new = make_tokens()[:, :1]
    hidden, cache = jax.jit(model.extend)(placed, new, cache, PROMPTS)
    keys = cache.stacks["0"].keys_lbmsh
    assert keys.sharding.shard_shape(keys.shape) == (2, 1, 1, LENGTH, 8)
    _, cache = jax.jit(one_device.prefill, static_argnums=2)(params, make_prompts(), LENGTH)
    expected, _ = jax.jit(one_device.extend)(params, new, cache, PROMPTS)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_a_cache_is_in_the_compute_dtype():
    config = dataclasses.replace(GROUPED, dtype="bfloat16")
    model, params = build(config)
    hidden, cache = jax.jit(model.prefill, static_argnums=2)(params, make_prompts(), LENGTH)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.stacks)} == {jnp.dtype("bfloat16")}
    new = make_tokens()[:, :1]
    whole = np.concatenate([make_prompts()[2:3], new[2:3]], axis=1)
    expected = model.hidden(params, jnp.asarray(whole))
    ours, _ = jax.jit(model.extend)(params, new, cache, PROMPTS)
    assert ours.dtype == hidden.dtype == expected.dtype
    np.testing.assert_allclose(np.float32(ours[2, 0]), np.float32(expected[0, -1]), atol=0.1)
