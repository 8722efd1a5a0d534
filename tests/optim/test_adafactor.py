from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpretrain.optim.adafactor import (
    clip_by_layer_rms,
    scale_by_factored_moment,
    scale_by_layer_rms,
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
