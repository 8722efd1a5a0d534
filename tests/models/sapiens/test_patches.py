import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.layers import axes_of, unbox
from jaxpretrain.models.sapiens import patches
from jaxpretrain.models.sapiens.patches import Positions, sincos_positions


def make_images(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(2, height, width, 3), dtype=np.uint8)


def test_pixels_are_normalised_by_imagenets_statistics():
    images = make_images()
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    normalized = patches.normalize(jnp.asarray(images))
    np.testing.assert_allclose(normalized, (images.astype(np.float64) - mean) / std, atol=1e-6)
    np.testing.assert_allclose(patches.to_unit(normalized), images / 255.0, atol=1e-6)


def test_patches_go_row_by_row_and_pixels_too_the_channel_fastest():
    images = make_images()
    found = np.asarray(patches.patchify(jnp.asarray(images), 3))
    assert found.shape == (2, 6, 27)
    for row, column in np.ndindex(2, 3):
        cut = images[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(found[:, 3 * row + column], cut.reshape(2, 27))
    np.testing.assert_array_equal(patches.unpatchify(jnp.asarray(found), 3, 9), images)


def test_the_variance_of_a_patch_is_the_unbiased_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(2, 5, 27))
    mean, deviation = patches.patch_moments(jnp.float32(values))
    np.testing.assert_allclose(mean[..., 0], values.mean(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(deviation[..., 0], values.std(axis=-1, ddof=1), rtol=1e-6)
    flat = patches.patch_moments(jnp.full((1, 1, 27), 0.5))[1]
    np.testing.assert_allclose(flat, 1e-3, rtol=1e-3)  # one colour: no division by zero


def test_orders_are_permutations_and_each_its_own():
    orders = np.asarray(patches.draw_orders(jax.random.key(0), jnp.arange(50), 16))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(16), (50, 1)))
    assert len(np.unique(orders, axis=0)) == 50
    other = patches.draw_orders(jax.random.key(1), jnp.arange(50), 16)
    assert not np.any(np.all(other == orders, axis=1))


def test_an_order_depends_on_the_row_not_on_the_batch():
    rng = jax.random.key(3)
    orders = patches.draw_orders(rng, jnp.arange(6), 16)
    some = patches.draw_orders(rng, jnp.array([4, 1, 4]), 16)
    np.testing.assert_array_equal(some, orders[jnp.array([4, 1, 4])])


def test_every_patch_is_seen_equally_often():
    orders = np.asarray(patches.draw_orders(jax.random.key(0), jnp.arange(8000), 8))
    counts = np.bincount(orders[:, :2].ravel(), minlength=8)
    # Binomial with p = 1/4: 2000 expected, 39 standard deviation.
    np.testing.assert_allclose(counts, 2000, atol=200)


@pytest.mark.parametrize("num_taken", [1, 4])
def test_what_is_taken_can_be_put_back(num_taken):
    values = jax.random.normal(jax.random.key(0), (2, 6, 5))
    at = patches.draw_orders(jax.random.key(1), jnp.arange(2), 6)[:, :num_taken]
    taken = patches.take(values, at)
    for example, index in np.ndindex(2, num_taken):
        np.testing.assert_array_equal(taken[example, index], values[example, at[example, index]])
    zeroed = np.asarray(patches.put(values, at, jnp.zeros_like(taken)))
    np.testing.assert_array_equal(np.sum(zeroed == 0.0, axis=(1, 2)), 5 * num_taken)
    np.testing.assert_array_equal(patches.put(jnp.asarray(zeroed), at, taken), values)


def test_positions_are_the_closed_form():
    """Row first, column second; sines before cosines; zeros for the class token."""
    rows, columns, features = 3, 5, 12
    expected = np.zeros((1 + rows * columns, features))
    for row in range(rows):
        for column in range(columns):
            for i in range(3):
                w = 10000 ** (-i / 3)
                waves = [f(at * w) for at in (row, column) for f in (math.sin, math.cos)]
                expected[1 + row * columns + column, i::3] = waves
    np.testing.assert_allclose(sincos_positions(rows, columns, features), expected, atol=1e-7)


def test_every_place_of_the_published_grid_has_positions_of_its_own():
    table = np.asarray(sincos_positions(64, 64, 1024))
    assert table.shape == (4097, 1024) and table.dtype == np.float32
    assert len(np.unique(table.round(5), axis=0)) == 4097
    assert np.abs(table).max() <= 1.0


def test_patches_are_looked_up_by_their_number_and_the_class_token_comes_first():
    positions = Positions("sincos", (2, 3), 8)
    whole = positions({})
    assert whole.shape == (1, 7, 8)
    some = positions({}, jnp.array([[5, 0], [2, 3]]))
    np.testing.assert_array_equal(some, whole[0][jnp.array([[0, 6, 1], [0, 3, 4]])])


def test_a_stored_table_starts_as_the_computed_one_and_gets_no_gradient():
    computed, stored = (Positions(kind, (2, 3), 8) for kind in ("sincos", "stored"))
    assert computed.init(jax.random.key(0)) == {}
    params, axes = unbox(stored.init(jax.random.key(0))), axes_of(stored.init)
    assert axes.keys() == params.keys() == {"constant"}
    np.testing.assert_array_equal(stored(params), computed({}))
    other = {"constant": 2.0 * params["constant"]}
    np.testing.assert_array_equal(stored(other), 2.0 * computed({}))
    gradient = jax.grad(lambda p: jnp.sum(stored(p) ** 2))(params)
    assert not np.any(gradient["constant"])
