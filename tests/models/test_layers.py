from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxpretrain.models import layers
from jaxpretrain.models.choices import RematPolicy
from jaxpretrain.models.contract import unconstrained
from jaxpretrain.models.matmul import PLAIN, Precision

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
