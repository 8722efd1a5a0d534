import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.matmul import PLAIN, ROW_MAJOR, choose_precision, transposed


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
    assert choose_precision("cpu", "bfloat16") == (jnp.bfloat16, ROW_MAJOR)
    for platform, dtype in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
        assert choose_precision(platform, dtype) == (jnp.dtype(dtype), PLAIN)
