import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models import masks
from jaxpretrain.models.masks import Mask


def test_a_document_ends_with_its_end_token():
    tokens = jnp.array([[3, 9, 4, 5, 9, 9, 1], [9, 2, 2, 2, 2, 2, 9]])
    expected = [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]
    numbers = masks.documents(tokens, 9)
    np.testing.assert_array_equal(numbers, expected)
    assert numbers.dtype == jnp.int32


def test_a_part_of_a_mask_is_a_part_of_the_whole():
    documents = jnp.array([[0, 0, 0, 1, 1, 2, 2, 2]])
    whole = slice(0, 8)
    for mask in (Mask(True, 3, documents), Mask(True, None, None), Mask(False, None, documents)):
        seen = np.asarray(mask.visible(whole, whole))
        part = mask.visible(slice(2, 6), slice(1, 7))
        np.testing.assert_array_equal(part, seen[:, 2:6, 1:7])
        assert np.all(seen[:, range(8), range(8)])  # each position sees itself


def test_a_mask_that_hides_nothing_is_none():
    assert Mask(False, None, None).visible(slice(0, 4), slice(0, 4)) is None


@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
def test_visible_pairs_are_counted_in_closed_form(window):
    seen = Mask(True, window, None).visible(slice(0, 8), slice(0, 8))
    assert masks.num_visible_pairs(8, window, causal=True) == np.sum(seen)
    assert masks.num_visible_pairs(8, window, causal=False) == 8 * min(window or 8, 8)
