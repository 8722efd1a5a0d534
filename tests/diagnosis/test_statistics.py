import numpy as np
import pytest
from scipy import stats

from jaxpretrain.diagnosis.statistics import (
    MEDIAN_ERROR,
    SIGMA,
    levels,
    noise,
    student_quantile,
    trend,
)

RNG = np.random.default_rng(0)


def test_a_line_has_its_change_and_no_error():
    line = trend(np.arange(0, 101, 10), np.linspace(5, 3, 11))
    assert line is not None
    assert line.change == pytest.approx(-2)
    assert line.error == pytest.approx(0, abs=1e-12)
    assert (line.falls, line.rises) == pytest.approx((0, 1))


@pytest.mark.parametrize("length", [4, 5, 32])
def test_the_trend_of_a_short_curve_is_the_regression_of_its_rows(length):
    steps = np.cumsum(RNG.integers(1, 9, length))
    values = 3 - 0.01 * steps + RNG.normal(size=length)
    line, expected = trend(steps, values), stats.linregress(steps, values)
    assert line is not None
    span = steps[-1] - steps[0]
    assert line.freedom == length - 2
    assert line.change == pytest.approx(expected.slope * span)
    assert line.error == pytest.approx(expected.stderr * span)
    for change in (-2.0, 0.0, 1.5):
        below = stats.t.cdf((line.change - change) / line.error, length - 2)
        assert line.below(change) == pytest.approx(below)
    assert line.falls == line.below(0.0)
    assert line.rises == 1 - line.falls


@pytest.mark.parametrize("length", [33, 500])
def test_the_trend_of_a_long_curve_is_the_regression_of_its_bins(length):
    steps = np.arange(1, length + 1)
    values = RNG.normal(size=length)
    line = trend(steps, values)
    bins = [[x.mean() for x in np.array_split(a, 16)] for a in (steps, values)]
    expected = stats.linregress(*bins)
    assert line is not None
    assert line.freedom == 14
    assert line.change == pytest.approx(expected.slope * (length - 1))
    assert line.error == pytest.approx(expected.stderr * (length - 1))


def test_a_flat_noisy_curve_is_called_falling_as_often_as_the_probability_says():
    rng = np.random.default_rng(0)
    lines = [trend(np.arange(200), rng.normal(size=200)) for _ in range(2000)]
    share = np.mean([line is not None and line.falls < 0.05 for line in lines])
    assert 0.03 < share < 0.07


def test_three_points_have_no_trend():
    assert trend(np.arange(3), np.arange(3.0)) is None
    assert trend(np.full(5, 7), np.arange(5.0)) is None


def test_quantiles_are_those_of_students_distribution():
    assert student_quantile(15, 0.95) == pytest.approx(stats.t.ppf(0.95, 15))


def test_noise_is_that_around_a_slope_whatever_the_spikes():
    rng = np.random.default_rng(0)
    values = np.linspace(5, 3, 2000) + 0.1 * rng.normal(size=2000)
    values[::50] += 20
    assert noise(values) == pytest.approx(0.1, rel=0.1)


def test_noise_is_the_deviation_of_differences_from_their_median():
    values = np.array([0.0, 1.0, 3.0, 3.5])  # differences 1, 2, 0.5: deviations 0, 1, 0.5
    assert noise(values) == pytest.approx(1.4826 * 0.5 / np.sqrt(2))
    assert noise(values[:3]) == pytest.approx(1.4826 * 0.5 / np.sqrt(2))
    assert noise(values[:2]) == 0.0


def test_levels_end_with_the_last_row():
    level = levels(np.arange(100.0), 32)
    assert level.rows.tolist() == [4, 36, 68]
    assert level.medians.tolist() == [19.5, 51.5, 83.5]
    none = levels(np.arange(10.0), 32)
    assert len(none.rows) == len(none.medians) == len(none.noises) == 0
    assert len(levels(np.arange(32.0), 32).medians) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_each_block_has_its_noise_and_single_rows_have_none(size):
    first = size // 2
    values = RNG.normal(size=first + 20 * size)
    level = levels(values, size)
    blocks = values[first:].reshape(20, size)
    assert level.noises.tolist() == pytest.approx([noise(block) for block in blocks])
    assert np.any(level.noises > 0) == (size > 2)
    late = np.median([noise(block) for block in blocks[-8:]])
    assert level.error == pytest.approx(MEDIAN_ERROR * late / np.sqrt(size))


def test_errors_of_medians_are_those_of_normal_numbers():
    samples = RNG.normal(size=(4000, 101))
    deviations = np.median(np.abs(samples - np.median(samples, axis=1, keepdims=True)), axis=1)
    assert SIGMA * deviations.mean() == pytest.approx(1, abs=0.02)
    error = np.median(samples, axis=1).std() * np.sqrt(101)
    assert pytest.approx(error, rel=0.03) == MEDIAN_ERROR
