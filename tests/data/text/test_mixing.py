import numpy as np
import pytest

from jaxpretrain.data.text.mixing import Blend, quotas, spread

WEIGHTS = [
    [0.7, 0.3],
    [1.0],
    [0.5, 0.25, 0.25],
    [0.61, 0.2, 0.1, 0.05, 0.04],
    [3, 1, 1, 1, 1, 1, 1],
]
STAGES = [(0, [5, 3, 2]), (37, [1, 0, 9]), (38, [4, 4, 2]), (1000, [0, 10, 0])]


def blend(stages=STAGES) -> Blend:
    return Blend([(first, np.array(shares)) for first, shares in stages])


@pytest.mark.parametrize("window", [7, 100, 1000])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_quotas_add_up_and_are_within_a_sample(weights: list[float], window: int):
    counts = quotas(weights, window)
    exact = np.array(weights) / sum(weights) * window
    assert counts.sum() == window
    assert (np.abs(counts - exact) < 1).all()
    # The largest remainders were rounded up.
    up, down = (counts - exact)[counts > exact], (counts - exact)[counts < exact]
    assert not len(up) or not len(down) or (1 - up).min() >= (-down).max() - 1e-9


def test_weights_are_proportions():
    np.testing.assert_array_equal(quotas([7, 3], 1000), quotas([0.7, 0.3], 1000))
    np.testing.assert_array_equal(quotas([0.1, 0.2, 0.7], 10), [1, 2, 7])
    np.testing.assert_array_equal(quotas([1, 0, 1, 1], 10), [4, 0, 3, 3])


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_windows_are_exact_and_any_stretch_is_within_two_samples(weights: list[float]):
    shares = quotas(weights, 200)
    pattern = spread(shares)
    np.testing.assert_array_equal(np.bincount(pattern, minlength=len(shares)), shares)
    is_of = np.tile(pattern, 3)[:, None] == np.arange(len(shares))
    before = np.concatenate([np.zeros((1, len(shares))), is_of.cumsum(axis=0)])
    drift = before - np.arange(len(before))[:, None] * shares / 200
    assert np.abs(drift).max() < 1  # of any beginning
    assert (drift.max(axis=0) - drift.min(axis=0)).max() < 2  # of any stretch


def test_each_source_is_read_without_a_gap_or_a_repeat():
    """Across windows and stages."""
    sources, numbers = blend()(np.arange(3000))
    for source in range(3):
        own = numbers[sources == source]
        np.testing.assert_array_equal(own, np.arange(len(own)))


def test_stages_begin_at_their_samples_with_their_proportions():
    sources, _ = blend()(np.arange(3000))
    for (first, shares), last in zip(STAGES, [37, 38, 1000, 3000], strict=True):
        num_windows = (last - first) // 10
        windows = sources[first : first + 10 * num_windows].reshape(num_windows, 10)
        for window in windows:
            np.testing.assert_array_equal(np.bincount(window, minlength=3), shares)


def test_samples_do_not_depend_on_what_is_asked_before_or_with_them():
    sources, numbers = blend()(np.arange(1200))
    samples = np.random.default_rng(0).permutation(1200)
    for part in np.array_split(samples, 7):
        own_sources, own_numbers = blend()(part)
        np.testing.assert_array_equal(own_sources, sources[part])
        np.testing.assert_array_equal(own_numbers, numbers[part])
    assert (sources.dtype, numbers.dtype) == (np.int32, np.int64)


def test_counts_are_those_of_the_samples_before():
    sources, _ = blend()(np.arange(1100))
    for num_samples in [*range(60), 999, 1000, 1001, 1100]:
        expected = np.bincount(sources[:num_samples], minlength=3)
        np.testing.assert_array_equal(blend().counts(num_samples), expected)


def test_far_samples_are_found_at_once():
    far = 10**15
    sources, numbers = blend([(0, [700, 300])])(far + np.arange(1000))
    np.testing.assert_array_equal(np.bincount(sources), [700, 300])
    assert numbers[sources == 1][0] == far * 3 // 10


def test_the_pattern_has_the_shortest_window():
    """700 and 300 of 1000 are exact in every 10 already."""
    assert blend([(0, [700, 300])]).proportions() == [(0, [7, 3])]
    sources, _ = blend([(0, [700, 300])])(np.arange(1000))
    assert (np.bincount(sources[:10]) == [7, 3]).all()
    assert (sources.reshape(-1, 10) == sources[:10]).all()


def test_find_is_the_inverse():
    sources, numbers = blend()(np.arange(1200))
    for sample in [0, 1, 36, 37, 38, 39, 999, 1000, 1199]:
        source, number = int(sources[sample]), int(numbers[sample])
        assert blend().find(source, number, 1200) == sample
        assert blend().find(source, number, sample) is None
    assert blend().find(0, 10**6, 1200) is None


@pytest.mark.parametrize(
    ("shares", "pattern"),
    [
        ([3], [0, 0, 0]),
        ([1, 1], [0, 1]),
        ([0, 2, 1], [1, 2, 1]),
        ([7, 3], [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]),
        ([5, 3, 2], [0, 1, 0, 2, 0, 1, 0, 2, 1, 0]),
        ([4, 4, 2], [0, 1, 2, 0, 1, 0, 1, 2, 0, 1]),
        ([6, 2, 1, 1], [0, 0, 1, 0, 2, 0, 0, 3, 1, 0]),
    ],
    ids=str,
)
def test_the_pattern_of_a_window_is_as_it_was(shares: list[int], pattern: list[int]):
    """Runs go on with the samples that they have begun with."""
    assert spread(np.array(shares)).tolist() == pattern


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_no_source_strays_further_than_the_best_bound(weights: list[float]):
    """From its share of the first m samples, by Tijdeman's 1 - 1 / (2 n - 2) for n sources."""
    shares = quotas(weights, 100)
    pattern, num_sources = spread(shares), len(weights)
    counts = (pattern[:, None] == np.arange(num_sources)).cumsum(axis=0)
    strayed = np.abs(counts - np.arange(1, 101)[:, None] * shares / 100).max()
    assert strayed <= (1 - 1 / (2 * num_sources - 2) if num_sources > 1 else 0) + 1e-9


def test_the_last_sample_before_a_stage_is_of_the_stage_before():
    both, first = blend()(np.arange(36, 39)), blend(STAGES[:1])(np.arange(36, 39))
    assert (both[0][0], both[1][0]) == (first[0][0], first[1][0])
    assert both[0][1] == 2  # the second stage is mostly of this source
    assert blend().counts(37).sum() == 37 and blend().counts(38).sum() == 38
