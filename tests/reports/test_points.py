import numpy as np
import pytest

from jaxpretrain.diagnosis.history import Series
from jaxpretrain.reports.points import extremes, numbers, smoothed


def curve(values):
    steps = np.arange(1, len(values) + 1)
    return Series(steps, steps.astype(float), np.asarray(values, float))


@pytest.mark.parametrize("place", [0, 1, 50_000, 99_998, 99_999])
def test_no_spike_is_hidden(place):
    values = np.random.default_rng(0).normal(size=100_000)
    values[place] = 100.0
    values[(place + 7) % 100_000] = -100.0
    shown = extremes(curve(values), 1000)
    assert len(shown) <= 1002
    assert {100.0, -100.0} <= set(shown.values)
    assert shown.steps[[0, -1]].tolist() == [1, 100_000]
    assert np.all(np.diff(shown.steps) > 0)


def test_what_is_shown_was_there():
    values = np.random.default_rng(0).normal(size=5000)
    shown = extremes(curve(values), 300)
    np.testing.assert_array_equal(values[shown.steps - 1], shown.values)


def test_short_curves_stay_as_they_are_without_what_is_no_number():
    shown = extremes(curve([1.0, np.nan, 3.0]), 10)
    assert shown.values.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("length", [0, 1, 5, 30, 10_000])
def test_a_smoothed_line_is_the_line(length):
    line = smoothed(curve(np.linspace(0, 1, length)))
    assert len(line) <= 300
    if length > 1:
        np.testing.assert_allclose(line.values, (line.steps - 1) / (length - 1), atol=1 / length)


def test_numbers_are_short_and_unknown_ones_are_null():
    assert numbers(np.array([1.23456789, np.nan])) == [1.2346, None]
    assert numbers(np.array([123456789])) == [123456789]
