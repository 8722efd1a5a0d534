import json

import numpy as np
import pytest

from jaxpretrain.sweeps.answer import answer

LOSS = "eval/a/loss"
LUCK = np.array([0.3, -0.2, 0.1])
"""What a seed does to the loss of each arm."""


def metrics_of(document):
    return {arm["name"]: arm["metrics"] for arm in document["arms"]}


def test_arms_are_judged_by_their_pairs(make_arm, make_document, tmp_path):
    noise = np.array([1e-3, -2e-3, 1e-3])
    arms = [
        make_arm("control", 3 + LUCK),
        make_arm("better", 2.9 + LUCK + noise),
        make_arm("worse", 3.2 + LUCK - noise),
        make_arm("same", 3 + LUCK + noise),
    ]
    document = answer(make_document(*arms, equal={"tokens": True}), tmp_path)
    assert (document["metric"], document["warnings"]) == (LOSS, [])
    assert document["equal"] == {"tokens": True}
    found = {name: metrics[LOSS] for name, metrics in metrics_of(document).items()}
    assert {name: metric.get("verdict") for name, metric in found.items()} == {
        "control": None,
        "better": "better",
        "worse": "worse",
        "same": "no_difference",
    }
    better = found["better"]
    assert (better["n"], better["pairs"]) == (3, 3)
    assert better["mean"] == pytest.approx(2.9 + LUCK.mean())
    assert better["stderr"] == pytest.approx((LUCK + noise).std(ddof=1) / 3**0.5)
    assert better["difference"] == pytest.approx(-0.1)
    assert better["low"] < -0.1 < better["high"] < 0
    assert better["p"] < better["p_holm"] < 0.05
    assert 0 < better["detectable"] < 0.05
    assert better["seeds_for_0.1_percent"] == pytest.approx(9, abs=3)
    assert found["control"].keys() == {"mean", "stderr", "n"}
    assert metrics_of(document)["worse"]["train/loss"]["verdict"] == "worse"
    json.dumps(document, allow_nan=False)


def test_a_seed_that_failed_leaves_its_pair_out(make_arm, make_document, tmp_path):
    arms = [make_arm("control", [3.0, 3.5, 3.2]), make_arm("x", [2.9, None, 3.1])]
    document = answer(make_document(*arms), tmp_path)
    found = metrics_of(document)["x"][LOSS]
    assert (found["pairs"], found["difference"]) == (2, pytest.approx(-0.1))
    assert metrics_of(document)["control"][LOSS]["n"] == 3
    assert document["warnings"] == ["x: 1 of its 3 runs failed"]


def test_one_pair_is_no_evidence(make_arm, make_document, tmp_path):
    arms = [make_arm("control", [3.0, None]), make_arm("x", [2.0, 2.0])]
    found = metrics_of(answer(make_document(*arms), tmp_path))["x"][LOSS]
    assert (found["difference"], found["verdict"]) == (-1.0, "no_difference")
    unknown = ("low", "high", "p", "p_holm", "detectable", "seeds_for_0.1_percent")
    assert {found[key] for key in unknown} == {None}


def test_without_finished_runs_there_are_no_metrics(make_arm, make_document, tmp_path):
    arms = [make_arm("control", [None, None]), make_arm("x", [None, None])]
    document = answer(make_document(*arms), tmp_path)
    assert metrics_of(document) == {"control": {}, "x": {}}
    assert document["metric"] is None
    assert len(document["warnings"]) == 2


def test_a_control_that_failed_leaves_the_others_their_means(make_arm, make_document, tmp_path):
    arms = [make_arm("control", [None, None]), make_arm("x", [2.0, 2.2])]
    found = metrics_of(answer(make_document(*arms), tmp_path))["x"][LOSS]
    assert (found["mean"], found["difference"], found["verdict"]) == (2.1, None, "no_difference")


def accuracies(*values):
    return [{"eval/t/acc": value, "eval/t/acc_stderr": 0.03} for value in values]


def test_a_lucky_share_of_few_items_is_no_winner(make_arm, make_document, tmp_path):
    """Both seeds are right on one item more, which seeds alone would take for certain."""
    arms = [
        make_arm("control", [3.0, 3.1], metrics=accuracies(0.5, 0.5), right=["1100", "1100"]),
        make_arm("x", [3.0, 3.1], metrics=accuracies(0.75, 0.75), right=["1110", "1110"]),
    ]
    found = metrics_of(answer(make_document(*arms), tmp_path))["x"]["eval/t/acc"]
    assert found["difference"] == 0.25
    assert (found["verdict"], found["p_holm"] > 0.3) == ("no_difference", True)
    assert found["low"] == 0.0


def test_a_gain_on_many_items_wins(make_arm, make_document, tmp_path):
    gained = "1" * 60 + "0" * 40
    right = {"control": ["1" * 30 + "0" * 70] * 3, "x": [gained, gained, "1" + gained[:-1]]}
    arms = [
        make_arm(
            name,
            [3.0] * 3,
            metrics=accuracies(*(row.count("1") / 100 for row in rows)),
            right=rows,
        )
        for name, rows in right.items()
    ]
    found = metrics_of(answer(make_document(*arms), tmp_path))["x"]["eval/t/acc"]
    assert found["verdict"] == "better"
    assert found["low"] == pytest.approx(0.21, abs=0.04)


def test_shares_without_items_have_the_noise_of_their_own_error(make_arm, make_document, tmp_path):
    arms = [
        make_arm("control", [3.0, 3.1], metrics=accuracies(0.50, 0.50)),
        make_arm("x", [3.0, 3.1], metrics=accuracies(0.53, 0.53)),
    ]
    found = metrics_of(answer(make_document(*arms), tmp_path))["x"]["eval/t/acc"]
    assert found["verdict"] == "no_difference"
    assert found["low"] < 0 < found["high"]


def test_each_arm_is_judged_at_its_own_best_settings(make_arm, make_document, tmp_path):
    """At the rate of the control, the arm looks worse; at its own, it is better."""
    noise = np.array([0, 1e-3, -1e-3, 2e-3])
    losses = {"control": (3.0, 3.1, 3.2), "x": (3.3, 2.9, 3.0)}
    arms = []
    for name, levels in losses.items():
        points = [
            make_arm(name, level + noise * (name == "x"), tuned=(("optim.peak", rate),))
            for level, rate in zip(levels, ("1e-3", "3e-3", "1e-2"), strict=True)
        ]
        arms.append(points[0] | {"runs": [run for point in points for run in point["runs"]]})
    document = answer(make_document(*arms), tmp_path)
    tuned = {arm["name"]: arm["tuned"] for arm in document["arms"]}
    assert tuned == {"control": (("optim.peak", "1e-3"),), "x": (("optim.peak", "3e-3"),)}
    found = metrics_of(document)["x"][LOSS]
    assert (found["verdict"], found["n"]) == ("better", 2)
    assert [line[:8] for line in document["warnings"]] == ["control:"]
