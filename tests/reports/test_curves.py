import numpy as np
import pytest

from jaxpretrain.diagnosis.history import Series
from jaxpretrain.reports.curves import (
    Chart,
    chart,
    extremes,
    framed,
    level,
    numbers,
    smoothed,
)
from jaxpretrain.reports.runs import grouped
from tests.reports.conftest import STEPS, run_with


def chart_of(history, values, layout=None, **config):
    runs = [run_with(history, train__a=values)]
    return chart(grouped(runs), "a", "A", {"": "train/a"}, layout)


def test_the_first_steps_do_not_flatten_the_rest_of_a_chart(history):
    falling = np.where(STEPS == 1, 8000.0, 200 - STEPS / 10)
    framed_chart = framed(chart_of(history, falling))
    low, high = framed_chart.layout["yaxis"]["range"]
    assert (low, high) == pytest.approx((100 - 4.75, 195 + 4.75), abs=1)
    assert framed_chart.note == "The first steps lie outside; a double click shows them."


def test_a_late_spike_is_in_the_first_view(history):
    spike = np.where(STEPS == 500, 12.0, 3.0 - STEPS / 1000)
    assert "range" not in framed(chart_of(history, spike)).layout["yaxis"]


def test_a_level_nearby_is_in_the_first_view_and_one_far_away_is_not(history):
    falling = np.where(STEPS == 1, 8000.0, 200 - STEPS / 10)
    for height, is_inside in ((250.0, True), (9000.0, False)):
        made = framed(chart_of(history, falling, {"shapes": [level(height, "bigram")]}))
        assert (made.layout["yaxis"]["range"][1] > height) == is_inside


def test_the_name_of_a_level_above_the_curve_is_below_its_line(history):
    for height, anchor in ((2000.0, "top"), (500.0, "bottom")):
        made = framed(chart_of(history, 1.0 * STEPS, {"shapes": [level(height, "bigram")]}))
        assert made.layout["shapes"][0]["label"]["yanchor"] == anchor


def test_values_of_many_magnitudes_are_on_a_logarithmic_axis(history):
    made = framed(chart_of(history, 10.0 ** (STEPS / 200)))
    assert made.layout["yaxis"] == {"type": "log"}


def test_a_chart_without_numbers_has_no_frame():
    empty = {"type": "scatter", "x": [], "y": [], "yaxis": "y"}
    assert framed(Chart("a", "A", [empty], {})).layout == {"yaxis": {}}


def test_the_curves_of_several_runs_differ_in_colour_and_metrics_in_dashes(history):
    runs = [run_with(history, name, train__a=STEPS, train__b=STEPS) for name in "xy"]
    made = chart(grouped(runs), "a", "A", {"a": "train/a", "b": "train/b"})
    looks = [(t["name"], t["color"], t["dash"], t["showlegend"]) for t in made.traces]
    assert looks == [
        ("x: a", 0, "solid", True),
        ("y: a", 1, "solid", True),
        ("x: b", 0, "dot", False),
        ("y: b", 1, "dot", False),
    ]
    assert made.note == "Dotted: b."


def series(values):
    steps = np.arange(1, len(values) + 1)
    return Series(steps, steps.astype(float), np.asarray(values, float))


@pytest.mark.parametrize("place", [0, 1, 50_000, 99_998, 99_999])
def test_no_spike_is_hidden(place):
    values = np.random.default_rng(0).normal(size=100_000)
    values[place] = 100.0
    values[(place + 7) % 100_000] = -100.0
    shown = extremes(series(values), 1000)
    assert len(shown) <= 1002
    assert {100.0, -100.0} <= set(shown.values)
    assert shown.steps[[0, -1]].tolist() == [1, 100_000]
    assert np.all(np.diff(shown.steps) > 0)


def test_what_is_shown_was_there():
    values = np.random.default_rng(0).normal(size=5000)
    shown = extremes(series(values), 300)
    np.testing.assert_array_equal(values[shown.steps - 1], shown.values)


def test_short_curves_stay_as_they_are_without_what_is_no_number():
    shown = extremes(series([1.0, np.nan, 3.0]), 10)
    assert shown.values.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("length", [0, 1, 5, 30, 10_000])
def test_a_smoothed_line_is_the_line(length):
    line = smoothed(series(np.linspace(0, 1, length)))
    assert len(line) <= 300
    if length > 1:
        np.testing.assert_allclose(line.values, (line.steps - 1) / (length - 1), atol=1 / length)


def test_numbers_are_short_and_unknown_ones_are_null():
    assert numbers(np.array([1.23456789, np.nan])) == [1.2346, None]
    assert numbers(np.array([123456789])) == [123456789]
