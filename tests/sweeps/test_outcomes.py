import numpy as np
import pytest

from jaxpretrain.sweeps.outcomes import (
    Outcome,
    judged,
    metric_names,
    read_outcome,
    shared_items,
)

RATES = [(("optim.peak", rate),) for rate in ("1e-3", "3e-3", "1e-2")]


def outcomes_of(folder, *arms):
    runs = [run for arm in arms for run in arm["runs"] if run["state"] == "done"]
    return {run["folder"]: read_outcome(folder / run["folder"]) for run in runs}


def test_the_training_loss_is_the_mean_of_the_last_tenth(make_arm, tmp_path):
    accuracy = {"eval/t/acc": 0.5, "eval/t/acc_stderr": 0.1}
    make_arm("x", [2.0], metrics=[accuracy], right=["10"])
    found = read_outcome(tmp_path / "x/seed0")
    assert found.values == {"train/loss": 2.5, "eval/a/loss": 2.0, "eval/t/acc": 0.5}
    assert found.errors == {"eval/t/acc": 0.1}
    assert found.items == {"eval/t/acc": [("0", True), ("1", False)]}
    assert metric_names([found]) == ["eval/a/loss", "eval/t/acc", "train/loss"]


def test_a_last_value_that_is_not_finite_is_no_result(make_arm, tmp_path):
    make_arm("x", [2.0])
    file = tmp_path / "x/seed0/metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 20, "time": 1.0, "eval/a/loss": null}\n')
    assert "eval/a/loss" not in read_outcome(tmp_path / "x/seed0").values


def test_without_nuisance_settings_all_seeds_judge(make_arm, tmp_path):
    arm = make_arm("x", [2.0, 2.1, None])
    side = judged(arm, [0, 1, 2], outcomes_of(tmp_path, arm), "eval/a/loss")
    assert list(side.runs) == [0, 1]
    assert (side.tuned, side.warning) == ((), "")


def tuned_arm(make_arm, *losses):
    """An arm with a learning rate for each list of losses."""
    arms = [make_arm("x", values, tuned=rate) for rate, values in zip(RATES, losses, strict=True)]
    return {"name": "x", "overrides": (), "runs": [run for arm in arms for run in arm["runs"]]}


def test_the_first_half_of_the_seeds_chooses_and_the_others_judge(make_arm, tmp_path):
    arm = tuned_arm(make_arm, [2.2, 2.2, 1.0], [2.0, 2.1, 2.3], [2.5, 1.0, 1.0])
    side = judged(arm, [0, 1, 2], outcomes_of(tmp_path, arm), "eval/a/loss")
    assert side.tuned == (("optim.peak", "3e-3"),)
    assert {seed: run.values["eval/a/loss"] for seed, run in side.runs.items()} == {1: 2.1, 2: 2.3}
    assert side.warning == ""


def test_a_best_value_at_an_edge_is_a_warning(make_arm, tmp_path):
    arm = tuned_arm(make_arm, [2.2] * 3, [2.1] * 3, [2.0] * 3)
    side = judged(arm, [0, 1, 2], outcomes_of(tmp_path, arm), "eval/a/loss")
    assert side.warning == (
        "x: its best optim.peak=1e-2 is the largest value tried; try values beyond it"
    )


def test_a_point_that_failed_while_choosing_is_not_chosen(make_arm, tmp_path):
    arm = tuned_arm(make_arm, [2.2] * 4, [1.0, None, 1.0, 1.0], [2.4] * 4)
    side = judged(arm, [0, 1, 2, 3], outcomes_of(tmp_path, arm), "eval/a/loss")
    assert side.tuned == RATES[0]
    assert list(side.runs) == [2, 3]
    failed = tuned_arm(make_arm, *[[None] * 4] * 3)
    side = judged(failed, [0, 1, 2, 3], {}, "eval/a/loss")
    assert (side.runs, side.tuned) == ({}, ())
    assert "no nuisance setting has finished" in side.warning


@pytest.mark.parametrize(("best", "metric"), [(1, "eval/a/loss"), (2, "eval/a/accuracy")])
def test_best_is_lowest_for_losses_and_highest_for_accuracies(make_arm, tmp_path, best, metric):
    values = [[3.0] * 3, [2.0] * 3, [4.0] * 3]
    arm = tuned_arm(make_arm, *values)
    outcomes = {
        name: Outcome({metric: outcome.values["eval/a/loss"]})
        for name, outcome in outcomes_of(tmp_path, arm).items()
    }
    assert judged(arm, [0, 1, 2], outcomes, metric).tuned == RATES[best]


def test_items_are_compared_where_all_runs_have_the_same():
    one = Outcome({}, items={"m": [("a", True), ("a", False)]})
    other = Outcome({}, items={"m": [("a", True), ("a", True)]})
    arm, control = shared_items("m", [one, one], [other, other])
    np.testing.assert_array_equal(arm, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(control, [[1, 1], [1, 1]])
    assert shared_items("m", [one], [Outcome({}, items={"m": [("a", True)]})]) is None
    assert shared_items("other", [one], [other]) is None
    assert shared_items("m", [], []) is None
