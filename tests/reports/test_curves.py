import numpy as np
import pytest

from jaxpretrain.reports.curves import Chart, chart, framed, level
from jaxpretrain.reports.groups import grouped
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
