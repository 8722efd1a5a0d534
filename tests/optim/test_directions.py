from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpretrain.optim.directions import (
    clip_by_layer_rms,
    orthogonalize,
    scale_by_factored_moment,
    scale_by_layer_rms,
    scale_by_muon,
)


def draw(seed: int, sizes: tuple[float, ...] = (1.0, 1e-3, 10.0)) -> dict[str, Any]:
    """Three layers of very different size, and parameters outside of layers."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    scale = np.float32(sizes)
    return {
        "blocks": {
            "0": {
                "up": {"kernel": normal(3, 4, 6) * scale[:, None, None]},
                "down": {"kernel": normal(3, 6, 4) * scale[:, None, None]},
                "norm": {"scale": normal(3, 4) * scale[:, None]},
            }
        },
        "embed": {"embedding": normal(7, 4)},
        "final_norm": {"scale": normal(4)},
    }


def alone(tree: Any, index: int) -> Any:
    """The tree with one layer of each stack, not stacked."""
    return tree | {"blocks": jax.tree.map(lambda leaf: leaf[index], tree["blocks"])}


def updates_of(transform: Any, params: Any, gradients: list[Any]) -> list[Any]:
    state, found, update = transform.init(params), [], jax.jit(transform.update)
    for g in gradients:
        updates, state = update(g, state, params)
        found.append(updates)
    return found


@pytest.mark.parametrize("min_size", [2, 5, 128])
def test_five_updates_are_those_of_optax_on_each_layer_alone(min_size):
    """The parts that optax.adafactor is made of, without its decay."""
    ours = optax.chain(
        scale_by_factored_moment(0.8, 0.999, min_size),
        clip_by_layer_rms(0.9),
        scale_by_layer_rms(1e-3),
    )
    theirs = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=min_size),
        optax.clip_by_block_rms(0.9),
        optax.scale_by_param_block_rms(1e-3),
    )
    params = draw(0, sizes=(1.0, 1e-5, 1.0))  # one below the smallest scale
    gradients = [draw(seed) for seed in range(1, 6)]
    found = updates_of(ours, params, gradients)
    for index in range(3):
        expected = updates_of(theirs, alone(params, index), [alone(g, index) for g in gradients])
        for a, b in zip(found, expected, strict=True):
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6),
                alone(a, index),
                b,
            )


def test_the_second_moment_is_rows_times_columns_over_their_mean():
    g = np.float64(draw(1)["blocks"]["0"]["up"]["kernel"])
    grads = {"blocks": {"kernel": jnp.asarray(g, jnp.float32)}}
    (found,) = updates_of(scale_by_factored_moment(0.8, 0.999, 2), grads, [grads])
    square = g**2  # the first update forgets what was before: 1 - 1^-0.8 = 0
    rows, columns = square.mean(2, keepdims=True), square.mean(1, keepdims=True)
    expected = g / np.sqrt(rows * columns / rows.mean(1, keepdims=True))
    np.testing.assert_allclose(found["blocks"]["kernel"], expected, rtol=1e-5)


def test_the_decay_of_the_second_moment_has_a_ceiling():
    """A whole moment of constant gradients, then one other: its share is one less the ceiling."""
    transform = scale_by_factored_moment(0.8, 0.5, 128)
    one, two = ({"head": {"bias": jnp.full((3,), x)}} for x in (1.0, 2.0))
    *_, last = updates_of(transform, one, [one] * 9 + [two])
    np.testing.assert_allclose(last["head"]["bias"], 2 / np.sqrt(0.5 * 1 + 0.5 * 4), rtol=1e-6)


def test_matrices_take_a_row_and_a_column_and_no_more():
    params = {
        "blocks": {"0": {"kernel": np.ones((3, 128, 256)), "scale": np.ones((3, 128))}},
        "embed": {"embedding": np.ones((512, 128))},
        "head": {"kernel": np.ones((128, 127))},
    }
    state = scale_by_factored_moment(0.8, 0.999, 128).init(params)

    def shapes(tree: Any) -> list[tuple[int, ...]]:
        return [leaf.shape for leaf in jax.tree.leaves(tree)]

    assert shapes(state.row) == [(3, 128, 1), (512, 1)]
    assert shapes(state.column) == [(3, 1, 256), (1, 128)]
    assert shapes(state.whole) == [(3, 128), (128, 127)]  # a vector, and a side that is too short


def test_gradients_of_zero_give_updates_of_zero():
    params = draw(0)
    zeros = jax.tree.map(np.zeros_like, params)
    for updates in updates_of(scale_by_factored_moment(0.8, 0.999, 2), params, [zeros] * 3):
        jax.tree.map(np.testing.assert_array_equal, updates, zeros)


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
