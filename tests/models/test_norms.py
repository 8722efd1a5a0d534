from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.models import layers
from jaxpretrain.models.norms import LayerNorm, Norm, NormRounding, RMSNorm

BF16 = jnp.dtype("bfloat16")
F32 = jnp.dtype("float32")


def variables(module: nn.Module, *inputs: jax.Array) -> tuple[Any, Any]:
    """(parameters, logical axes) of a module."""
    make = lambda rng: layers.init(module, rng, *inputs)  # noqa: E731
    return layers.unbox(make(jax.random.key(0))), layers.axes_of(make)


def test_layer_norm_is_the_formula_and_has_no_parameters():
    norm = Norm(LayerNorm(1e-5), "norm", F32)
    x = 3.0 + 0.01 * jax.random.normal(jax.random.key(0), (2, 3, 64))
    assert variables(norm, x) == ({}, {})
    x64 = np.asarray(x, np.float64)
    centred = x64 - x64.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm.apply({}, x), expected, atol=2e-4)


def test_rms_norm_is_the_formula_with_a_scale_of_one_at_first():
    norm = Norm(RMSNorm(1e-2), "heads", F32)
    x = 0.3 * jax.random.normal(jax.random.key(0), (2, 3, 16))
    params, axes = variables(norm, x)
    assert axes == {"scale": ("heads",)}
    np.testing.assert_array_equal(params["scale"], np.ones(16))
    scale = np.linspace(-1.0, 2.0, 16)
    x64 = np.asarray(x, np.float64)
    expected = scale * x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + 1e-2)
    out = norm.apply({"params": {"scale": jnp.float32(scale)}}, x)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_rms_norm_rounds_before_it_scales_and_computes_in_float32():
    norm = Norm(RMSNorm(1e-6), "norm", BF16)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 8, 64)), BF16)
    scale = jnp.asarray(rng.uniform(0.5, 2.0, size=64), jnp.float32)
    x32 = np.asarray(x, np.float32)
    normed = jnp.float32(x32 / np.sqrt((x32**2).mean(axis=-1, keepdims=True) + 1e-6))
    rounded_first = normed.astype(BF16) * scale.astype(BF16)[None, None]
    rounded_last = (normed * scale[None, None]).astype(BF16)
    out = norm.apply({"params": {"scale": scale}}, x)
    assert out.dtype == BF16
    # A last bit of float32 may tip the rounding of single values.
    assert np.mean(np.float32(out) == np.float32(rounded_first)) > 0.995
    assert np.mean(np.float32(out) == np.float32(rounded_last)) < 0.9

    core = Norm(RMSNorm(1e-6, "after_scale"), "norm", BF16)
    out = core.apply({"params": {"scale": scale}}, x)
    assert out.dtype == BF16
    assert np.mean(np.float32(out) == np.float32(rounded_last)) > 0.995


def test_rms_norm_rounds_a_float32_residual_stream_once():
    """Rounding before the scale means to the dtype that came in."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 8, 64)), jnp.float32)
    scale = {"params": {"scale": jnp.asarray(rng.uniform(0.5, 2.0, size=64), jnp.float32)}}
    before, after = (
        Norm(RMSNorm(1e-6, rounding), "norm", BF16).apply(scale, x)
        for rounding in get_args(NormRounding)
    )
    assert before.dtype == BF16
    np.testing.assert_array_equal(np.float32(before), np.float32(after))
