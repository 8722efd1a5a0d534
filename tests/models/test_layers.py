import re
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpretrain.models import layers
from jaxpretrain.models.choices import RematPolicy
from jaxpretrain.models.contract import unconstrained
from jaxpretrain.models.layers import (
    PLAIN,
    ROW_MAJOR,
    UNROUNDED,
    LayerNorm,
    Norm,
    NormRounding,
    Precision,
    RMSNorm,
    choose_precision,
    transposed,
)

BF16 = jnp.dtype("bfloat16")
F32 = jnp.dtype("float32")


def variables(module: nn.Module, *inputs: jax.Array) -> tuple[Any, Any]:
    """(parameters, logical axes) of a module."""
    make = lambda rng: layers.init(module, rng, *inputs)  # noqa: E731
    return layers.unbox(make(jax.random.key(0))), layers.axes_of(make)


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_the_truncated_normal_is_cut_and_narrower_than_its_std(std):
    draw = layers.truncated_normal(std, 3.0)(jax.random.key(1), (1_000_000,), jnp.float32)
    draw = np.asarray(draw, np.float64)
    assert 2.99 * std < np.abs(draw).max() <= 3.0 * std * (1 + 1e-6)
    np.testing.assert_allclose(draw.std(), 0.98658 * std, rtol=0.003)
    assert abs(draw.mean()) < 0.005 * std


def test_without_a_cutoff_the_normal_has_its_std_and_its_tails():
    draw = layers.truncated_normal(0.02, None)(jax.random.key(1), (1_000_000,), jnp.float32)
    np.testing.assert_allclose(np.asarray(draw, np.float64).std(), 0.02, rtol=0.003)
    assert np.abs(draw).max() > 4 * 0.02


def test_linear_is_a_product_in_the_compute_dtype_with_a_float32_weight():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    init = layers.truncated_normal(0.5, 3.0)
    for dtype in (F32, BF16):
        linear = layers.Linear(6, ("embed", "mlp"), Precision(dtype, PLAIN), init)
        params, axes = variables(linear, x)
        assert params["kernel"].dtype == jnp.float32
        assert axes == {"kernel": ("embed", "mlp")}
        out = linear.apply({"params": params}, x)
        expected = np.float32(x.astype(dtype)) @ np.float32(params["kernel"].astype(dtype))
        assert out.dtype == dtype
        np.testing.assert_allclose(np.float32(out), expected, rtol=1e-2, atol=1e-2)
        exact = dtype == F32
        assert (np.abs(np.float32(out) - expected).max() < 1e-6) == exact


def test_embedding_looks_rows_up():
    embedding = layers.Embedding(7, 4, layers.truncated_normal(1.0, None), F32, unconstrained)
    tokens = jnp.array([[0, 6, 3], [3, 3, 1]])
    params, axes = variables(embedding, tokens)
    assert axes == {"embedding": ("vocab", "embed")}
    table = np.asarray(params["embedding"])
    assert table.shape == (7, 4)
    np.testing.assert_array_equal(embedding.apply({"params": params}, tokens), table[tokens])


def recomputed(policy: RematPolicy) -> dict[str, int]:
    """How often a block's operations stand in the program of its gradient."""

    def block(x: jax.Array, w: jax.Array) -> jax.Array:
        attended = checkpoint_name(jnp.sin(x), "attention")
        return jnp.tanh(jnp.exp(attended) @ w)

    gradient = jax.grad(lambda x, w: jnp.sum(layers.remat(block, policy, scanned=False)(x, w)))
    text = str(jax.make_jaxpr(gradient)(jnp.ones((2, 3)), jnp.ones((3, 3))))
    return {name: text.count(f" {name} ") + text.count(f" {name}[") for name in ("sin", "exp")} | {
        "products": text.count("dot_general[")
    }


def test_remat_recomputes_what_its_policy_says():
    # The gradient of the inputs takes one product more than the forward pass.
    assert recomputed("none") == {"sin": 1, "exp": 1, "products": 2}
    assert recomputed("full") == {"sin": 2, "exp": 2, "products": 3}
    assert recomputed("dots") == {"sin": 1, "exp": 2, "products": 2}
    assert recomputed("attention") == {"sin": 1, "exp": 2, "products": 3}


def test_every_remat_policy_is_known_and_others_are_not():
    for policy in get_args(RematPolicy):
        assert callable(layers.remat(jnp.sin, policy, scanned=True))
    unknown: Any = "everything"
    with pytest.raises(KeyError):
        layers.remat(jnp.sin, unknown, scanned=True)


def test_a_linear_map_adds_its_bias_after_the_product():
    one = lambda rng, shape, dtype: jnp.full(shape, 0.5, dtype)  # noqa: E731
    linear = layers.Linear(3, ("embed", "mlp"), Precision(F32, PLAIN), one, one)
    params, axes = variables(linear, jnp.ones((2, 4)))
    assert axes == {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    np.testing.assert_array_equal(linear.apply({"params": params}, jnp.ones((2, 4))), 2.5)


def test_stacked_boxes_have_one_axis_more():
    linear = layers.Linear(
        3, ("embed", "mlp"), Precision(F32, PLAIN), layers.truncated_normal(1.0, None)
    )
    make = lambda rng: layers.stacked(  # noqa: E731
        jax.vmap(lambda key: layers.init(linear, key, jnp.ones((1, 4))))(jax.random.split(rng, 5))
    )
    assert layers.axes_of(make) == {"kernel": ("layers", "embed", "mlp")}
    assert layers.unbox(make(jax.random.key(0)))["kernel"].shape == (5, 4, 3)


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


def gradients(products, x, w, dout):
    """The product and its gradients."""
    return jax.jit(
        lambda *args: (products.matmul(*args), jax.vjp(products.matmul, *args)[1](dout))
    )(x, w)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_row_major_products_equal_the_plain_formula(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (24, 16), dtype)
    w = jax.random.normal(keys[1], (16, 40), jnp.float32)
    dout = jax.random.normal(keys[2], (24, 40), dtype)
    ours, plain = gradients(ROW_MAJOR, x, w, dout), gradients(PLAIN, x, w, dout)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance * 4)


def test_the_gradient_of_a_float32_weight_is_not_rounded_to_bfloat16():
    x = jax.random.normal(jax.random.key(0), (64, 8), jnp.bfloat16)
    w = jnp.ones((8, 8))
    dout = jax.random.normal(jax.random.key(1), (64, 8), jnp.bfloat16)
    _, (_, dw) = gradients(ROW_MAJOR, x, w, dout)
    exact = np.float32(x).T @ np.float32(dout)
    np.testing.assert_allclose(dw, exact, rtol=1e-5, atol=1e-5)
    assert np.any(np.float32(dw.astype(jnp.bfloat16)) != np.float32(dw))


def test_a_transpose_is_a_copy_in_row_major_order():
    text = jax.jit(transposed).lower(jnp.ones((3, 5))).compile().as_text()
    assert "f32[5,3]{1,0}" in text
    np.testing.assert_array_equal(transposed(jnp.arange(6.0).reshape(2, 3)).shape, (3, 2))


def test_products_are_chosen_by_platform_and_dtype():
    for reduced in ("bfloat16", "float32"):
        assert choose_precision("cpu", "bfloat16", reduced) == (BF16, ROW_MAJOR, F32)
        assert choose_precision("gpu", "float32", reduced) == (F32, PLAIN, F32)
    for platform in ("gpu", "tpu"):
        assert choose_precision(platform, "bfloat16", "bfloat16") == (BF16, PLAIN, BF16)
        assert choose_precision(platform, "bfloat16", "float32") == (BF16, UNROUNDED, F32)


def test_an_unrounded_product_is_the_plain_one_but_for_the_gradient_of_the_weight():
    x = jax.random.normal(jax.random.key(0), (64, 16), jnp.bfloat16)
    w = jax.random.normal(jax.random.key(2), (16, 8))
    dout = jax.random.normal(jax.random.key(1), (64, 8), jnp.bfloat16)
    plain, (plain_dx, plain_dw) = gradients(PLAIN, x, w, dout)
    out, (dx, dw) = gradients(UNROUNDED, x, w, dout)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(dx, plain_dx)
    np.testing.assert_allclose(dw, np.float32(x).T @ np.float32(dout), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(plain_dw.astype(jnp.bfloat16), plain_dw)
    assert np.any(dw.astype(jnp.bfloat16) != dw)


@pytest.mark.parametrize("products", [PLAIN, UNROUNDED], ids=["rounded", "unrounded"])
def test_a_recomputed_layer_gathers_its_weights_once_in_each_pass(products):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    columns = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))

    def loss(w_lkn: jax.Array, x_rk: jax.Array) -> jax.Array:
        layer = jax.checkpoint(lambda x_rk, w_kn: (jax.nn.silu(products.matmul(x_rk, w_kn)), None))
        return jnp.sum(jnp.square(jax.lax.scan(layer, x_rk, w_lkn)[0]))

    step = jax.jit(jax.grad(loss), in_shardings=(columns, rows), out_shardings=columns)
    text = step.lower(jnp.ones((4, 64, 64)), jnp.ones((32, 64))).compile().as_text()
    assert len(re.findall(r" all-gather\(", text)) == 2  # one in each of the two loops


def test_the_gradient_of_an_embedding_is_summed_in_float32():
    """As for frequent tokens of a text: one of two ids has most of 4,096 places."""
    embedding = layers.Embedding(3, 8, layers.truncated_normal(1.0, None), BF16, unconstrained)
    tokens_bt = jnp.where(jnp.arange(4096) % 64 == 0, 1, 0).reshape(2, 2048)
    params = layers.unbox(layers.init(embedding, jax.random.key(0), tokens_bt))
    dout = jax.random.normal(jax.random.key(1), (2, 2048, 8), jnp.bfloat16) + 1
    out, pull = jax.vjp(lambda params: layers.apply(embedding, params, tokens_bt), params)
    np.testing.assert_array_equal(out, params["embedding"].astype(jnp.bfloat16)[tokens_bt])
    ((found,),) = (jax.tree.leaves(pull(dout)[0]),)
    exact = np.stack([np.float64(dout)[tokens_bt == i].sum(axis=0) for i in range(3)])
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert not found[2].any()
