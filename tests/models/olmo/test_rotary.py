from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.olmo.rotary import Rope, Yarn, rope_table, rotate

BF16 = jnp.dtype("bfloat16")
F32 = jnp.dtype("float32")


def until(end: int) -> jnp.ndarray:
    """Positions [1, end] from 0 on."""
    return jnp.arange(end)[None]


def test_rotary_positions_turn_pairs_of_channels_half_a_head_apart():
    theta, head_dim = 10000.0, 6
    x = np.random.default_rng(0).normal(size=(1, 5, 2, head_dim))
    out = rotate(jnp.float32(x), rope_table(until(5), head_dim, Rope(theta)))
    for position in range(5):
        for i in range(head_dim // 2):
            angle = position * theta ** (-2 * i / head_dim)
            pair = x[0, position, :, i] + 1j * x[0, position, :, i + head_dim // 2]
            turned = pair * np.exp(1j * angle)
            np.testing.assert_allclose(out[0, position, :, i], turned.real, atol=1e-6)
            np.testing.assert_allclose(
                out[0, position, :, i + head_dim // 2], turned.imag, atol=1e-6
            )


def test_scores_of_rotated_vectors_depend_on_their_distance_alone():
    q, k = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    rope = rope_table(until(32), 16, Rope(500.0))
    q_all, k_all = (rotate(jnp.tile(x, (1, 32, 1, 1)), rope)[0, :, 0] for x in (q, k))
    scores = np.asarray(q_all @ k_all.T)
    for distance in range(-31, 32):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert np.ptp(scores[0]) > 1.0


def test_rotation_is_in_float32_whatever_comes_in():
    """At a late position, angles in bfloat16 would be off by whole turns."""
    rope = rope_table(until(4096), 8, Rope())
    assert {table.dtype for table in rope} == {F32}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4096, 1, 8)), BF16)
    out = rotate(x, rope)
    assert out.dtype == BF16
    expected = rotate(x.astype(jnp.float32), rope).astype(BF16)
    np.testing.assert_array_equal(np.float32(out), np.float32(expected))
    angle = 4095 * 10000.0 ** (-2 / 8)
    np.testing.assert_allclose(rope[0][0, 4095, 1], np.sin(angle), atol=1e-4)


# --- YaRN ---

HEAD_DIM, THETA = 128, 500000.0  # of OLMo 3


def turns(rope: Rope | Yarn, num_positions: int = 4) -> np.ndarray:
    """Angles per position of OLMo 3's channels; those of position 1, in float64."""
    sin, cos = rope_table(until(num_positions), HEAD_DIM, rope)
    return np.arctan2(np.float64(sin[0, 1]), np.float64(cos[0, 1]))


def test_yarn_is_the_formula():
    """Channel by channel, with OLMo 3's numbers: a ramp from channel 18 to 35."""
    yarn = Yarn(THETA)
    low = np.floor(128 * np.log(8192 / (32 * 2 * np.pi)) / (2 * np.log(500000.0)))
    high = np.ceil(128 * np.log(8192 / (1 * 2 * np.pi)) / (2 * np.log(500000.0)))
    assert (low, high) == (18, 35)
    plain = 500000.0 ** (-np.arange(64) / 64)
    slowed = np.clip((np.arange(64) - low) / (high - low), 0.0, 1.0)
    expected = (1 - slowed) * plain + slowed * plain / 8
    np.testing.assert_allclose(turns(yarn), expected, rtol=1e-4)
    sin, cos = rope_table(until(4), HEAD_DIM, yarn)
    np.testing.assert_allclose(np.hypot(sin, cos), 0.1 * np.log(8) + 1, rtol=1e-6)


def test_yarn_leaves_fast_channels_and_slows_slow_ones_by_its_factor():
    slowed = turns(Rope(THETA)) / turns(Yarn(THETA, factor=4.0))
    np.testing.assert_allclose(slowed[:19], 1.0, rtol=1e-4)
    np.testing.assert_allclose(slowed[35:], 4.0, rtol=1e-4)
    assert np.all(np.diff(slowed[18:36]) > 0.0)


def test_yarn_by_one_changes_nothing():
    for ours, plain in zip(
        rope_table(until(64), HEAD_DIM, Yarn(THETA, factor=1.0)),
        rope_table(until(64), HEAD_DIM, Rope(THETA)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("yarn", "message"),
    [
        (Yarn(original_length=6), "original_length=6: must be at least 2 pi beta_slow = 6.283"),
        (Yarn(original_length=25, beta_slow=4.0), "at least 2 pi beta_slow = 25.13"),
        (Yarn(10.0, original_length=10**6), "original_length=1000000: too long for"),
        (Yarn(factor=0.5), "factor=0.5: must be 1 or more"),
        (Yarn(beta_slow=0.0), "beta_slow=0.0: must be above 0"),
        (Yarn(beta_fast=2.0, beta_slow=4.0), "no more than model.rope.beta_fast=2.0"),
        (Yarn(1.0), "model.rope.theta=1.0: must be above 1"),
    ],
)
def test_yarn_that_programs_read_differently_is_refused(yarn: Yarn, message: str):
    with pytest.raises(InputError, match=message):
        yarn.check(4)


@pytest.mark.parametrize("length", [7, 26, 8192])
def test_yarn_from_one_slow_turn_on_is_accepted(length: int):
    Yarn(original_length=length, beta_slow=1.0 if length == 7 else 4.0).check(4)


@pytest.mark.parametrize(
    "yarn", [Yarn(THETA), Yarn(THETA, 4.0, 2048, 16.0, 2.0), Yarn(THETA, 4.0, 7)], ids=str
)
def test_yarn_is_that_of_transformers(yarn):
    torch = pytest.importorskip("torch")
    olmo3: Any = pytest.importorskip("transformers.models.olmo3.modeling_olmo3")
    plain = {"rope_type": "default", "rope_theta": 500000.0}
    stretched = {
        "rope_type": "yarn",
        "rope_theta": 500000.0,
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_length,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
    }
    config = olmo3.Olmo3Config(
        hidden_size=512,
        num_attention_heads=4,
        num_hidden_layers=4,
        max_position_embeddings=int(yarn.factor * yarn.original_length),
        rope_parameters={"full_attention": stretched, "sliding_attention": plain},
    )
    rotary = olmo3.Olmo3RotaryEmbedding(config)
    positions = torch.arange(4096)[None]
    for kind, ours in (("full_attention", yarn), ("sliding_attention", Rope(THETA))):
        cos, sin = (x[0, :, :64].numpy() for x in rotary(torch.zeros(1), positions, kind))
        table = rope_table(until(4096), HEAD_DIM, ours)
        np.testing.assert_allclose(table[0][0], sin, atol=1e-3)
        np.testing.assert_allclose(table[1][0], cos, atol=1e-3)
