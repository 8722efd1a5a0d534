import numpy as np
import pytest
from scipy import stats

from jaxpretrain.sweeps.statistics import (
    bootstrap_items,
    holm,
    independent_difference,
    paired_difference,
    seeds_for,
    smallest_detectable,
)

TRIALS = 2000


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_intervals_over_seeds_cover_the_truth(num_seeds):
    random, effect, covered = np.random.default_rng(num_seeds), 0.02, 0
    for _ in range(TRIALS):
        control = 3 + random.normal(0, 0.1, num_seeds)  # most of a seed's luck is in both arms
        arm = control + effect + random.normal(0, 0.01, num_seeds)
        found = paired_difference(arm, control)
        covered += found.low <= effect <= found.high
    assert 0.93 <= covered / TRIALS <= 0.97


@pytest.mark.parametrize(("num_arms", "num_seeds"), [(3, 3), (8, 3), (12, 5)])
def test_arms_without_an_effect_rarely_win_or_lose_after_the_correction(num_arms, num_seeds):
    random, wrong = np.random.default_rng(num_arms), 0
    for _ in range(TRIALS):
        runs = random.normal(3, 0.01, (num_arms, num_seeds))
        p_values = [paired_difference(arm, runs[0]).p for arm in runs[1:]]
        wrong += min(holm(p_values)) < 0.05
    assert wrong / TRIALS <= 0.06


def test_intervals_over_items_cover_the_truth():
    random, covered, trials = np.random.default_rng(0), 0, 500
    for trial in range(trials):
        chance = random.random(60)  # to be right, of each item; the arm gains a tenth
        control = (random.random((2, 60)) < 0.9 * chance).astype(float)
        arm = (random.random((2, 60)) < 0.9 * chance + 0.1).astype(float)
        found = bootstrap_items(arm, control, seed=trial)
        covered += found.low <= 0.1 <= found.high
    assert 0.93 <= covered / trials <= 0.97


def test_a_pair_of_seeds_gives_what_scipy_gives():
    arm, control = [2.9, 3.1, 3.05, 3.0], [3.0, 3.15, 3.2, 3.0]
    found, expected = paired_difference(arm, control), stats.ttest_rel(arm, control)
    assert found.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.n, found.mean) == (4, pytest.approx(-0.075))


def test_what_is_not_known_is_nan():
    one, none = paired_difference([1.0], [2.0]), paired_difference([], [])
    assert (one.mean, one.n) == (-1.0, 1)
    assert np.isnan([one.low, one.high, one.p, one.smallest, none.mean]).all()
    assert none.n == 0


def test_differences_without_spread():
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired_difference([1.5, 2.5], [1.0, 2.0]).p == 0.0


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("num_seeds", [2, 3, 8])
def test_the_smallest_difference_is_seen_four_times_in_five(num_seeds):
    effect = smallest_detectable(0.01, num_seeds)
    random = np.random.default_rng(1)
    differences = random.normal(effect, 0.01, (TRIALS, num_seeds))
    seen = [paired_difference(row, np.zeros(num_seeds)).p < 0.05 for row in differences]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)


def test_more_comparisons_show_less():
    assert smallest_detectable(0.01, 3, comparisons=5) > 2 * smallest_detectable(0.01, 3)


def test_the_number_of_seeds_is_the_smallest_that_suffices():
    number = seeds_for(0.01, 0.0035)
    assert smallest_detectable(0.01, number) <= 0.0035 < smallest_detectable(0.01, number - 1)
    assert seeds_for(0.0, 0.1) == 2
    assert seeds_for(1.0, 1e-6) == 10_000


def test_the_wider_of_two_noises_counts():
    seeds = paired_difference([0.5, 0.5], [0.4, 0.4])
    items = independent_difference(seeds.mean, 0.08)
    both = seeds.wider(items)
    assert seeds.p < 0.05 < both.p == items.p == pytest.approx(2 * stats.norm.sf(0.1 / 0.08))
    assert (both.low, both.high) == (items.low, items.high)
    assert both.n == 2
