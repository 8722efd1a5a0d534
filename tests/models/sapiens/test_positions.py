import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.models.layers import axes_of, unbox
from jaxpretrain.models.sapiens.positions import Positions, sincos_positions


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
