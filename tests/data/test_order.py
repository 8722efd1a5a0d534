import pickle

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.order import HashedOrder, OlmoOrder, make_order

ORDERS = [OlmoOrder, HashedOrder]
SIZES = [1, 2, 3, 5, 10, 64, 100, 997, 4096, 10007]


@pytest.mark.parametrize("num_examples", SIZES)
@pytest.mark.parametrize("order", ORDERS)
def test_every_epoch_visits_every_example_once(order, num_examples: int):
    order = order(num_examples, seed=3)
    for epoch in range(3):
        samples = np.arange(epoch * num_examples, (epoch + 1) * num_examples)
        np.testing.assert_array_equal(np.sort(order(samples)), np.arange(num_examples))


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_is_a_function_of_seed_and_sample(order):
    """In any batches, in any order of asking, and after pickling."""
    num_examples = 100
    samples = np.arange(5 * num_examples)
    whole = order(num_examples, seed=7)(samples)
    asked = order(num_examples, seed=7)
    shuffled = np.random.default_rng(0).permutation(samples)
    np.testing.assert_array_equal(asked(shuffled), whole[shuffled])
    batches = [pickle.loads(pickle.dumps(asked))(batch) for batch in np.split(samples, 50)]
    np.testing.assert_array_equal(np.concatenate(batches), whole)


@pytest.mark.parametrize("order", ORDERS)
def test_epochs_and_seeds_differ(order):
    num_examples = 1000
    samples = np.arange(num_examples)
    orders = [
        order(num_examples, seed=1)(samples),
        order(num_examples, seed=1)(samples + num_examples),
        order(num_examples, seed=20)(samples),
    ]
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            assert (first == second).mean() < 0.02  # chance: 0.001


def test_olmo_order_is_numpys_shuffle_of_each_epoch():
    """The definition in OLMo's iterable_dataset.py: PCG64(seed + epoch), uint32 indices."""
    num_examples, seed = 31, 6198
    for epoch in range(3):
        expected = np.arange(num_examples, dtype=np.uint32)
        np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(expected)
        samples = epoch * num_examples + np.arange(num_examples)
        np.testing.assert_array_equal(OlmoOrder(num_examples, seed)(samples), expected)


def test_olmo_order_stays_what_it_was():
    """NumPy may in principle change `shuffle`; these are the indices of its versions so far."""
    assert OlmoOrder(10, 6198)(np.arange(10)).tolist() == [2, 4, 7, 3, 8, 9, 0, 6, 1, 5]


def test_olmo_order_keeps_at_most_two_epochs():
    order = OlmoOrder(10, seed=0)
    order(np.arange(95))
    assert len(order._permutations) <= 2


def test_olmo_order_refuses_more_than_32_bits():
    with pytest.raises(InputError, match="data.order=hashed"):
        OlmoOrder(2**32 + 1, seed=0)


def test_hashed_order_is_spread_evenly():
    """Positions of consecutive samples: uniform (chi-squared) and uncorrelated."""
    num_examples, num_bins = 1_000_003, 64
    indices = HashedOrder(num_examples, seed=11)(np.arange(64_000))
    counts = np.bincount(indices * num_bins // num_examples, minlength=num_bins)
    expected = len(indices) / num_bins
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 25 < chi_squared < 120  # 63 degrees of freedom: mean 63, deviation 11
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 0.02


def test_hashed_order_reaches_beyond_32_bits():
    num_examples = 10**12 + 39
    indices = HashedOrder(num_examples, seed=0)(np.arange(1000) + 7 * num_examples)
    assert indices.min() >= 0
    assert 2**32 < indices.max() < num_examples
    assert len(np.unique(indices)) == 1000


@pytest.mark.parametrize("name", ["olmo", "hashed"])
def test_no_examples_is_an_error(name):
    with pytest.raises(InputError, match="not one full sequence"):
        make_order(name, 0, seed=0)
