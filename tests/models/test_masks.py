import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models import masks
from jaxpretrain.models.contract import Branches
from jaxpretrain.models.masks import Mask


def test_a_document_ends_with_its_end_token():
    tokens = jnp.array([[3, 9, 4, 5, 9, 9, 1], [9, 2, 2, 2, 2, 2, 9]])
    expected = [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]
    numbers = masks.documents(tokens, 9)
    np.testing.assert_array_equal(numbers, expected)
    assert numbers.dtype == jnp.int32


def test_a_part_of_a_mask_is_a_part_of_the_whole():
    documents = jnp.array([[0, 0, 0, 1, 1, 2, 2, 2]])
    branches = Branches(
        stems_bt=jnp.array([[0, 0, 0, 0, 0, 1, 1, 1]]),
        branches_bt=jnp.array([[0, 0, 1, 1, 2, 0, 1, 2]]),
        positions_bt=jnp.array([[0, 1, 2, 3, 2, 0, 1, 1]]),
    )
    whole = slice(0, 8)
    for mask in (
        Mask(True, 3, documents),
        Mask(True, None, None),
        Mask(False, None, documents),
        Mask(True, 2, None, branches),
    ):
        seen = np.asarray(mask.visible(whole, whole))
        part = mask.visible(slice(2, 6), slice(1, 7))
        np.testing.assert_array_equal(part, seen[:, 2:6, 1:7])
        assert np.all(seen[:, range(8), range(8)])  # each position sees itself


def test_a_branch_sees_its_stem_and_itself():
    branches = Branches(
        stems_bt=jnp.array([[7, 7, 7, 7, 7, 9, 9]]),
        branches_bt=jnp.array([[0, 0, 1, 1, 2, 0, 5]]),
        positions_bt=jnp.array([[0, 1, 2, 3, 2, 0, 1]]),
    )
    whole = slice(0, 7)
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    seen = Mask(True, None, None, branches).visible(whole, whole)
    np.testing.assert_array_equal(seen, np.array([expected], bool))
    near = Mask(True, 2, None, branches).visible(whole, whole)
    assert near is not None
    np.testing.assert_array_equal(near[0, 4], [False, True, False, False, True, False, False])


def test_a_branch_goes_on_in_the_document_of_its_stem():
    """The ends of other branches and of other stems are not on its path."""
    tokens = jnp.array([[1, 9, 2, 9, 3, 9, 4, 5, 9, 6, 7]])
    branches = Branches(
        stems_bt=jnp.array([[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]]),
        branches_bt=jnp.array([[0, 0, 0, 1, 1, 2, 3, 0, 0, 1, 2]]),
        positions_bt=jnp.zeros((1, 11), jnp.int32),
    )
    numbers = masks.documents(tokens, 9, branches)[0].tolist()
    first, second = numbers[:7], numbers[7:]
    assert first == [0, 0, 1, 1, 2, 1, 1]
    assert second[0] == second[1] and second[2:] == [second[1] + 1] * 2


def test_a_mask_that_hides_nothing_is_none():
    assert Mask(False, None, None).visible(slice(0, 4), slice(0, 4)) is None


@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
def test_visible_pairs_are_counted_in_closed_form(window):
    seen = Mask(True, window, None).visible(slice(0, 8), slice(0, 8))
    assert masks.num_visible_pairs(8, window, causal=True) == np.sum(seen)
    assert masks.num_visible_pairs(8, window, causal=False) == 8 * min(window or 8, 8)
