import csv
import io

import numpy as np
import pytest

from jaxpretrain.sweeps.answer import answer
from jaxpretrain.sweeps.told import COLUMNS, table, to_csv, words

LUCK = np.array([0.3, -0.2, 0.1])
NOISE = np.array([1e-3, -2e-3, 1e-3])


@pytest.fixture
def document(make_arm, make_document, tmp_path):
    """An answer with one arm of each verdict, of which one costs more."""
    arms = [
        make_arm("control", 3 + LUCK),
        make_arm("same", 3.0001 + LUCK + NOISE),
        make_arm("worse", 3.2 + LUCK - NOISE),
        make_arm("better", 2.9 + LUCK + NOISE),
        make_arm("few", [2.0, None, None]),
    ]
    unequal = ["better: 12.0% more FLOPs than control", "worse/p=1: fewer"]
    return answer(make_document(*arms, differences=unequal), tmp_path)


def test_the_answer_in_words(document):
    lines = document["answer"]
    assert lines[0] == "Compared with control (the config as it stands) by eval/a/loss."
    assert lines[1].startswith("better is better than control: -0.100 (95 % interval -0.104")
    assert lines[1].endswith("; 12.0% more FLOPs than control.")
    assert lines[2].startswith("worse is worse than control: +0.200")
    assert lines[2].endswith("; fewer.")
    assert lines[3] == "few has 1 pair of runs, too few for an interval."
    assert lines[4].startswith("same: no difference larger than 0.0")
    assert lines[5:7] == ["By train/loss, better: better.", "By train/loss, worse: worse."]
    assert lines[7].startswith("Such 3 pairs of runs show a difference of 0.0")
    assert lines[7].endswith("seeds.")
    assert lines[8:] == ["Warning: few: 2 of its 3 runs failed."]


def test_a_null_result_says_what_could_have_been_seen(make_arm, make_document, tmp_path):
    arms = [make_arm("control", 3 + LUCK), make_arm("same", 3 + LUCK + NOISE)]
    lines = words(answer(make_document(*arms), tmp_path))
    assert lines[1] == "No arm is better than the control by more than the noise."
    assert lines[2].startswith("same: no difference larger than 0.00")


def test_losses_that_measure_different_things_crown_no_arm(make_arm, make_document, tmp_path):
    """The arm with the lower loss is the one with the worse probe, and the probe decides."""
    probes = [
        [
            {"eval/probe/accuracy": right + luck, "eval/probe/accuracy_stderr": 0.001}
            for luck in LUCK / 30
        ]
        for right in (0.7, 0.6)
    ]
    arms = [
        make_arm("control", 3 + LUCK, metrics=probes[0]),
        make_arm("half", 2 + LUCK + NOISE, metrics=probes[1]),
    ]
    found = answer(make_document(*arms, are_losses_comparable=False), tmp_path)
    assert found["metric"] == "eval/probe/accuracy"
    told = " ".join(found["answer"])
    assert "half is worse than control: -0.1" in told
    assert "measure different things" in told
    assert "better:" not in told and "train/loss" not in told


def test_a_control_without_results_is_said(make_arm, make_document, tmp_path):
    arms = [make_arm("control", [None, None]), make_arm("x", [3.0, 3.1])]
    lines = answer(make_document(*arms), tmp_path)["answer"]
    assert lines[0] == "No comparison yet: the control control has no finished run."


def test_one_pair_is_not_said_to_be_no_better(make_arm, make_document, tmp_path):
    arms = [make_arm("control", [3.0, None]), make_arm("x", [2.0, None])]
    assert not any(
        "No arm is better" in x for x in answer(make_document(*arms), tmp_path)["answer"]
    )


def test_arms_that_end_alike_are_said_to_have_no_effect(make_arm, make_document, tmp_path):
    arms = [make_arm("control", 3 + LUCK), make_arm("same", 3 + LUCK)]
    lines = answer(make_document(*arms), tmp_path)["answer"]
    assert any(x.startswith("same ends as control in every seed: what it changes") for x in lines)
    assert not any("0.00%" in line for line in lines)


def test_the_best_setting_of_the_control_is_named(make_arm, make_document, tmp_path):
    arms = []
    for name, best in (("control", "1"), ("x", "2")):
        runs = []
        for rate in ("1", "2"):
            loss = 3.0 if rate == best else 4.0
            runs += make_arm(name, loss + np.arange(4) / 100, tuned=(("lr", rate),))["runs"]
        arms.append({"name": name, "overrides": (("model.x", name),), "runs": runs})
    lines = answer(make_document(*arms), tmp_path)["answer"]
    assert "at its best lr=1, by eval/a/loss." in lines[0]


def test_without_a_score_such_losses_give_no_verdict(make_arm, make_document, tmp_path):
    arms = [make_arm("control", 3 + LUCK), make_arm("half", 2 + LUCK + NOISE)]
    lines = answer(make_document(*arms, are_losses_comparable=False), tmp_path)["answer"]
    assert lines[1].startswith("The losses of these arms measure different things")
    assert lines[2:] == ["Add a task or a probe (`eval`) to compare them by."]
    found = answer(make_document(*arms, are_losses_comparable=False), tmp_path)
    results = found["arms"][1]["metrics"]
    assert {result["verdict"] for result in results.values()} == {"no_difference"}
    assert {result["p_holm"] for result in results.values()} == {None}
    assert "not comparable" in table(found) and "better" not in table(found)


def test_before_a_comparison_words_say_so(make_arm, make_document, tmp_path):
    arms = [make_arm("control", [3.0, 3.0]), make_arm("x", [None, None])]
    lines = words(answer(make_document(*arms), tmp_path))
    assert lines[0].startswith("No comparison yet")
    assert lines[1:] == ["Warning: x: 2 of its 2 runs failed."]


def test_many_arms_are_counted(make_arm, make_document, tmp_path):
    arms = [make_arm(f"x{i}", 3 + LUCK + 0.2 * (i > 3) + NOISE * (i > 0)) for i in range(20)]
    lines = words(answer(make_document(*arms), tmp_path))
    assert "And 11 arms more: 8 worse, 3 no difference." in lines
    assert len(lines) < 15


def test_the_table_has_a_block_for_each_metric_and_fits(document):
    text = table(document)
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [block[0].split()[0] for block in blocks] == ["eval/a/loss", "train/loss"]
    assert [len(block) for block in blocks] == [6, 6]
    assert blocks[0][1].split() == ["control", "3.0667", "0.15", "3", "control"]
    assert blocks[0][2].endswith("no difference")
    assert blocks[0][4].endswith("better")
    assert blocks[0][5].endswith("too few runs")


def test_long_names_lose_their_middle(make_arm, make_document, tmp_path):
    long = "first" + "x" * 80 + "last"
    arms = [make_arm("control", 3 + LUCK), make_arm(long, 2.9 + LUCK + NOISE)]
    lines = table(answer(make_document(*arms), tmp_path)).splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert lines[2].startswith("firstx")
    assert "...x" in lines[2]
    assert "last " in lines[2]


def test_csv_has_a_row_for_each_arm_and_metric(document):
    rows = list(csv.DictReader(io.StringIO(to_csv(document))))
    assert len(rows) == 10
    better = next(row for row in rows if row["arm"] == "better")
    assert (better["metric"], better["verdict"]) == ("eval/a/loss", "better")
    assert better["overrides"] == "model.x=better"
    assert float(better["difference"]) == pytest.approx(-0.1)
    assert next(row for row in rows if row["arm"] == "control")["difference"] == ""
