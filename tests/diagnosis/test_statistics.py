import numpy as np
import pytest

from jaxpretrain.diagnosis.statistics import levels, noise, trend


def test_a_line_has_its_change_and_no_error():
    line = trend(np.arange(0, 101, 10), np.linspace(5, 3, 11))
    assert line is not None
    assert line.change == pytest.approx(-2)
    assert line.error == pytest.approx(0, abs=1e-12)
    assert (line.falls, line.rises) == pytest.approx((0, 1))


def test_a_flat_noisy_curve_is_called_falling_as_often_as_the_probability_says():
    rng = np.random.default_rng(0)
    lines = [trend(np.arange(200), rng.normal(size=200)) for _ in range(2000)]
    share = np.mean([line is not None and line.falls < 0.05 for line in lines])
    assert 0.03 < share < 0.07


def test_three_points_have_no_trend():
    assert trend(np.arange(3), np.arange(3.0)) is None
    assert trend(np.full(5, 7), np.arange(5.0)) is None


def test_noise_is_that_around_a_slope_whatever_the_spikes():
    rng = np.random.default_rng(0)
    values = np.linspace(5, 3, 2000) + 0.1 * rng.normal(size=2000)
    values[::50] += 20
    assert noise(values) == pytest.approx(0.1, rel=0.1)


def test_levels_end_with_the_last_row():
    level = levels(np.arange(100.0), 32)
    assert level.rows.tolist() == [4, 36, 68]
    assert level.medians.tolist() == [19.5, 51.5, 83.5]
    assert len(levels(np.arange(10.0), 32).medians) == 0
