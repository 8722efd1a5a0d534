import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpretrain.optim.muon import orthogonalize, scale_by_muon


def matrices(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(16, 16), (3, 32, 8), (3, 8, 32), (2, 2, 8, 8)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape, size):
    m = size * matrices(*shape)
    u, s, vh = np.linalg.svd(m, full_matrices=False)
    found = jax.jit(orthogonalize, static_argnums=1)(m, 5)
    values = u.mT @ found @ vh.mT  # diagonal, if the singular vectors are the same
    diagonal = np.diagonal(values, axis1=-2, axis2=-1)
    np.testing.assert_allclose(values - diagonal[..., None] * np.eye(s.shape[-1]), 0, atol=1e-4)
    assert diagonal.max() < 1.25
    # Tiny singular values are still on their way.
    assert diagonal[s > 0.02 * np.linalg.norm(m, axis=(-2, -1))[..., None]].min() > 0.65


def test_a_matrix_of_zeros_stays_finite():
    np.testing.assert_array_equal(orthogonalize(jnp.zeros((2, 3, 4)), 5), np.zeros((2, 3, 4)))


def test_five_updates_are_those_of_a_loop_over_layers_in_float64():
    """As torch.optim.Muon writes it: Nesterov by two interpolations, then the iterations."""

    def reference(gradients: list[np.ndarray]) -> np.ndarray:
        buffer = np.zeros_like(gradients[0])
        for g in gradients:
            buffer = buffer + (1 - 0.95) * (g - buffer)
        x = gradients[-1] + 0.95 * (buffer - gradients[-1])
        transposed = x.shape[0] > x.shape[1]
        x = x.T if transposed else x
        x = x / max(np.linalg.norm(x), 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return (x.T if transposed else x) * 0.2 * np.sqrt(max(x.shape))

    for shape in ((3, 6, 10), (3, 10, 6)):
        gradients = [matrices(*shape, seed=seed) for seed in range(5)]
        transform = scale_by_muon(0.95, 5, "adamw_rms", "float32")
        state, update = transform.init(gradients[0]), None
        for g in gradients:
            update, state = transform.update(jnp.asarray(g), state)
        expected = [reference([np.float64(g[i]) for g in gradients]) for i in range(3)]
        np.testing.assert_allclose(update, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 64, 16), (4, 16, 64)])
def test_scales_are_what_their_names_say(shape):
    """Adam's root mean square of some 0.2, or a spectral norm that widths set."""
    g = jnp.asarray(matrices(*shape))
    updates = {}
    for scale in ("adamw_rms", "spectral"):
        transform = scale_by_muon(0.95, 5, scale, "float32")
        updates[scale], _ = transform.update(g, transform.init(g))
    rms = np.sqrt(np.mean(np.square(updates["adamw_rms"]), axis=(1, 2)))
    assert (rms > 0.14).all() and (rms < 0.24).all()
    norm = np.linalg.norm(updates["spectral"], 2, axis=(1, 2)) / np.sqrt(
        max(1, shape[2] / shape[1])
    )
    assert (norm > 0.9).all() and (norm < 1.25).all()


def test_optaxs_iterations_give_the_same_matrices():
    m = matrices(6, 10)
    dimensions = optax.contrib.MuonDimensionNumbers()
    theirs = optax.contrib.scale_by_muon(
        beta=0.0, nesterov=False, weight_dimension_numbers=dimensions
    )
    expected, _ = theirs.update(jnp.asarray(m), theirs.init(jnp.asarray(m)))
    np.testing.assert_allclose(orthogonalize(jnp.asarray(m), 5), expected, atol=1e-5)
