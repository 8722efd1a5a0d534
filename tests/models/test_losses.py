from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.losses import CHUNK, cross_entropy, token_losses

B, T, D, V = 2, 12, 5, 17
Z_LOSS = 0.01


def naive(x_btd, kernel_dv, targets_bt, weights_bt, z_loss=Z_LOSS):
    """(objective, cross-entropy, z) from all the logits at once, in float32."""
    logits_btv = jnp.float32(x_btd) @ jnp.float32(kernel_dv)
    log_probs_btv = jax.nn.log_softmax(logits_btv, axis=-1)
    log_probs_bt = jnp.sum(log_probs_btv * jax.nn.one_hot(targets_bt, V), axis=-1)
    lse_bt = jnp.log(jnp.sum(jnp.exp(logits_btv), axis=-1))
    ce_b = -jnp.sum(weights_bt * log_probs_bt, axis=1)
    z_b = jnp.sum(weights_bt * jnp.square(lse_bt), axis=1)
    return jnp.sum(ce_b + z_loss * z_b), ce_b, z_b


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=(B, T))
    weights[0, 3] = 0.0
    weights[1, :] = 0.0
    return (
        jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32),
        jnp.asarray(rng.normal(size=(D, V)), jnp.float32),
        jnp.asarray(rng.integers(V, size=(B, T)), jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


def values(function: Any, inputs: tuple[jax.Array, ...], **options: Any):
    """The three results."""
    return jax.jit(lambda *args: function(*args, **options))(*inputs)


def gradients(function: Any, inputs: tuple[jax.Array, ...], result: int = 0, **options: Any):
    """Gradients of one of the results with respect to hidden states and kernel."""
    gradient = jax.grad(lambda *args: function(*args, **options)[result].sum(), argnums=(0, 1))
    return jax.jit(gradient)(*inputs)


@pytest.mark.parametrize("chunk", [1, 3, 5, 11, 12, 512])
def test_chunks_of_any_size_give_values_and_gradients_of_the_whole(inputs, chunk):
    options = {"z_loss": Z_LOSS, "chunk": chunk}
    expected_values = values(naive, inputs)
    for ours, expected in zip(
        values(cross_entropy, inputs, **options), expected_values, strict=True
    ):
        assert ours.dtype == jnp.float32 and ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=2e-6)
    ours = gradients(cross_entropy, inputs, **options)
    for a, b in zip(ours, gradients(naive, inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_values_are_the_same_with_and_without_gradients(inputs):
    def objective(*args):
        return cross_entropy(*args, z_loss=Z_LOSS, chunk=5)[0]

    value, _ = jax.jit(jax.value_and_grad(objective))(*inputs)
    np.testing.assert_allclose(value, jax.jit(objective)(*inputs), rtol=1e-6)


def test_gradients_scale_with_what_follows(inputs):
    """The gradient is taken in the forward pass, for a factor of one."""
    ours, expected = (
        jax.jit(jax.grad(lambda x, f=f: jnp.square(f(x, *inputs[1:], z_loss=Z_LOSS)[0])))(inputs[0])
        for f in (cross_entropy, naive)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_positions_of_weight_zero_do_not_count(inputs):
    x, kernel, targets, weights = inputs
    left_out = np.asarray(weights) == 0.0
    other = jnp.where(left_out[..., None], 7.0, x), kernel, jnp.where(left_out, 3, targets), weights
    before = values(cross_entropy, inputs, chunk=5)
    for ours, expected in zip(values(cross_entropy, other, chunk=5), before, strict=True):
        np.testing.assert_array_equal(ours, expected)
    dx, dkernel = gradients(cross_entropy, inputs, z_loss=Z_LOSS, chunk=5)
    assert np.all(np.asarray(dx)[left_out] == 0.0) and np.all(np.asarray(dx)[~left_out] != 0.0)
    other_dkernel = gradients(cross_entropy, other, z_loss=Z_LOSS, chunk=5)[1]
    np.testing.assert_array_equal(dkernel, other_dkernel)


def test_only_the_objective_has_a_gradient(inputs):
    assert all(np.any(g) for g in gradients(cross_entropy, inputs, result=0, z_loss=Z_LOSS))
    for result in (1, 2):
        for gradient in gradients(cross_entropy, inputs, result, z_loss=Z_LOSS, chunk=5):
            np.testing.assert_array_equal(gradient, 0.0)


def test_without_z_loss_the_objective_is_the_cross_entropy(inputs):
    objective, ce, z = values(cross_entropy, inputs, z_loss=0.0, chunk=5)
    np.testing.assert_allclose(objective, np.sum(ce), rtol=1e-6)
    assert ce.shape == z.shape == (B,) and np.all(z >= 0.0) and np.any(z > 0.0)


def test_bfloat16_inputs_have_float32_sums_and_bfloat16_gradients(inputs):
    x, kernel, targets, weights = inputs
    rounded = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), targets, weights
    ours = values(cross_entropy, rounded, z_loss=Z_LOSS, chunk=5)
    for a, b in zip(ours, values(naive, rounded), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5)  # products of bfloat16 are exact in float32
    ours = gradients(cross_entropy, rounded, z_loss=Z_LOSS, chunk=5)
    for a, b in zip(ours, gradients(naive, rounded), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0.02, atol=0.02)


def test_large_logits_do_not_overflow():
    x, kernel = jnp.full((1, 4, 1), 300.0), jnp.array([[1.0, -1.0]])
    targets, weights = jnp.array([[0, 1, 0, 1]]), jnp.ones((1, 4))
    _, ce, z = values(cross_entropy, (x, kernel, targets, weights), chunk=3)
    assert ce[0] == 2 * 600.0 and z[0] == 4 * 300.0**2
    dx, _ = gradients(cross_entropy, (x, kernel, targets, weights), chunk=3)
    np.testing.assert_array_equal(dx[0, :, 0], [0.0, 2.0, 0.0, 2.0])


def sizes(jaxpr: Any) -> Iterator[int]:
    """Sizes of all arrays of a jaxpr, those inside its loops and calls included."""
    for equation in jaxpr.eqns:
        yield from (out.aval.size for out in equation.outvars)
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from sizes(part)


@pytest.mark.parametrize(("chunk", "num_positions"), [(4, 4), (5, 5), (12, 12)])
def test_no_more_than_a_chunk_of_logits_ever_exists(chunk, num_positions):
    """In value and gradient as traced, and in the memory that the compiler asks for."""
    vocab = 1000  # far more than anything else
    x, kernel = jnp.zeros((B, T, D)), jnp.zeros((D, vocab))
    targets, weights = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T))
    gradient = jax.value_and_grad(
        lambda *args: cross_entropy(*args, z_loss=Z_LOSS, chunk=chunk)[0], argnums=(0, 1)
    )
    traced = jax.jit(gradient).trace(x, kernel, targets, weights)
    assert max(sizes(traced.jaxpr.jaxpr)) == max(B * num_positions, D) * vocab
    memory = traced.lower().compile().memory_analysis()
    logits_bytes = 4 * B * num_positions * vocab
    assert memory.temp_size_in_bytes < 3 * logits_bytes + 4 * D * vocab + 4096


@pytest.mark.parametrize("chunk", [5, CHUNK])
def test_the_losses_of_tokens_add_up_to_those_of_sequences(inputs, chunk, monkeypatch):
    monkeypatch.setattr("jaxpretrain.models.losses.CHUNK", chunk)
    losses_bt = jax.jit(token_losses)(*inputs)
    assert losses_bt.shape == (B, T) and losses_bt[0, 3] == 0
    np.testing.assert_allclose(losses_bt.sum(axis=1), naive(*inputs)[1], rtol=2e-6)
