import numpy as np

from jaxpretrain.diagnosis.history import Series
from jaxpretrain.reports.groups import differences, grouped, shared
from tests.reports.conftest import run_with


def runs_of(history, *configs):
    return [run_with(history, f"r{n}", config=c) for n, c in enumerate(configs)]


def test_runs_that_differ_in_the_seed_are_one_group_and_rates_are_on_a_scale(history):
    runs = runs_of(
        history,
        *({"optim": {"peak": p}, "seed": s, "monitor": {"every": s}}
          for p in (1e-3, 1e-2, 1e-1) for s in (1, 2)),
    )  # fmt: skip
    groups = grouped(runs)
    assert [group.name for group in groups] == [f"peak {p}, mean of 2" for p in (1e-3, 1e-2, 1e-1)]
    assert [[run.name for run in group.runs] for group in groups][1] == ["r2", "r3"]
    assert [group.color for group in groups] == [{"at": 0.0}, {"at": 0.5}, {"at": 1.0}]


def test_runs_that_differ_in_several_fields_or_in_words_have_colours_of_the_palette(history):
    two = runs_of(history, {"a": 1, "b": 1}, {"a": 2, "b": 2})
    assert [(g.name, g.color) for g in grouped(two)] == [("r0", 0), ("r1", 1)]
    words = runs_of(history, {"a": "x"}, {"a": "y"})
    assert [group.color for group in grouped(words)] == [0, 1]


def test_a_number_that_is_not_finite_has_no_place_on_the_scale(history):
    runs = runs_of(history, {"a": 1.0}, {"a": float("inf")}, {"a": 2.0})
    assert [group.color for group in grouped(runs)] == [0, 1, 2]


def test_a_single_run_needs_no_name_and_runs_without_a_config_are_not_alike(history):
    one, two = (run_with(history, name) for name in "ab")
    assert [group.label("training") for group in grouped([one])] == ["training"]
    assert [group.label("training") for group in grouped([one, two])] == [
        "a: training",
        "b: training",
    ]


def test_differences_have_a_value_of_each_run(history):
    runs = runs_of(history, {"a": 1, "b": 3}, {"a": 2, "b": 3}, {"a": 1, "b": 3})
    assert differences(runs) == {"a": [1, 2, 1]}


def test_a_mean_is_taken_where_all_curves_have_steps():
    one, two = (
        Series(np.array(steps), np.array(steps, float), np.array(values, float))
        for steps, values in (([1, 2, 3], [1, 2, 3]), ([2, 3, 4], [4, 5, 6]))
    )
    mean, values = shared([one, two])
    assert mean.steps.tolist() == [2, 3] and mean.values.tolist() == [3.0, 4.0]
    assert values.tolist() == [[2, 3], [4, 5]]
    assert len(shared([])[0]) == 0
