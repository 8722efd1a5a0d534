import json
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.reports.runs import RunHistory, read_run
from jaxpretrain.reports.words import cards, findings, planned, tick_format, title, verdict, words
from tests.reports.conftest import make_run

PLAN = TrainingPlan(20, [], lambda s: 0 * np.asarray(s) + 1e-3)
GIB = 2**30


def test_a_short_run_is_shown_with_the_loss_it_has_come_to_in_a_few_digits(history):
    steps = np.arange(1, 21)
    rising = history(steps, {"train/loss": 6.2 * 4.0**steps, "eval/a/loss": 1e300 + 0.0 * steps})
    run = RunHistory("a", rising, PLAN, {}, {}, [], now=20.0)
    shown = cards(run)
    assert (
        "training loss at step 20</span><b>6.817e+12</b>" in shown and "<b>1.000e+300</b>" in shown
    )
    assert run.severity == "error"
    assert "The loss has risen from" in verdict(run)


def test_the_evidence_of_a_finding_is_in_words(tmp_path):
    shown = findings(read_run(make_run(tmp_path / "run", "divergence")), [])
    assert "relative error 0.0" in shown and "relative_error" not in shown
    assert "; step 185<" in shown and "; steps 168 to 176<" in shown


def run_in(folder: Path, **documents: object):
    lines = [
        {
            "step": step,
            "time": 1000.0 + step,
            "train/loss": 3.0,
            "train/tokens": 100 * step,
            "perf/tokens_per_second": 50.0,
            "perf/device_memory_gib": 0.75,
            "perf/host_memory_gib": 2.5,
        }
        for step in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return read_run(folder)


def test_a_run_without_a_plan_has_nothing_to_compare(tmp_path: Path):
    assert planned(run_in(tmp_path)) == ""


def test_the_parts_of_memory_add_up_and_stand_beside_the_peaks(tmp_path: Path):
    memory = {"parameters": GIB // 4, "activations": GIB // 2}
    text = planned(run_in(tmp_path, experiment={"memory": memory}))
    assert "<td>in all</td><td>0.75</td>" in text
    assert "<td>most that was held on the device</td><td>0.75</td>" in text
    assert "<td>most that was held on the host</td><td>2.50</td>" in text
    assert "planned" not in text


def test_a_plan_is_compared_with_what_came(tmp_path: Path):
    plan = {"tokens_per_second": 60.0, "memory_bytes_per_device": GIB, "device_hours": 2.0}
    text = planned(run_in(tmp_path, plan=plan))
    assert "<td>tokens per second</td><td>60</td><td>50</td>" in text
    assert "<td>GiB of a device</td><td>1.00</td><td>0.75</td>" in text
    assert "device-hours of the whole run" in text


@pytest.mark.parametrize(
    ("name", "document", "key"),
    [
        ("plan", {"tokens_per_second": "60"}, "tokens_per_second"),
        ("plan", {"device_hours": [2.0]}, "device_hours"),
        ("plan", {"memory_bytes_per_device": {"a": 1}}, "memory_bytes_per_device"),
        ("plan", [], "is not a JSON object"),
        ("experiment", {"memory": {"parameters": [1]}}, "memory.parameters"),
        ("experiment", {"memory": 3}, "memory"),
        ("experiment", {"config": [1]}, "config"),
        ("experiment", "x", "is not a JSON object"),
    ],
)
def test_a_document_of_other_types_is_named_with_its_key(
    tmp_path: Path, name: str, document: object, key: str
):
    with pytest.raises(InputError, match=rf"{name}\.json: {key}"):
        run_in(tmp_path, **{name: document})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("perf/host_memory_gib", "Host memory, GiB"),
        ("train/z", "Squared log-partition function (z)"),
        ("train/wiki/loss", "Loss of wiki"),
        ("eval/digits/probe_10shot", "Accuracy of a linear probe, images per class: 10 of digits"),
        ("perf/mfu", "Model FLOPs utilisation"),
    ],
)
def test_titles_are_words(name, expected):
    assert title(name) == expected


def test_unknown_names_lose_their_underscores():
    assert words("train/my_new_metric") == "my new metric"


def test_shares_are_percent_with_digits():
    assert tick_format("perf/data_wait_fraction") == ".3~%"
    assert tick_format("train/loss") == ""


def test_a_stopped_run_says_the_step_that_is_saved_and_no_date(history):
    steps = np.arange(1, 101)
    values = {"train/loss": 5.0 - 0.01 * steps, "time/train_seconds": 1.0 * steps}
    losses = history(steps, values)
    plan = TrainingPlan(200, [], lambda s: 0 * np.asarray(s) + 1e-3)
    run = RunHistory("a", losses, plan, {"last_saved": 120}, {}, [], now=losses.span[1] + 86_400)
    shown = verdict(run)
    assert "Step 120 of 200 (60.0%)" in shown and "stopped, it seems" in shown
    assert "once the same command is run again." in shown and ", until " not in shown


def test_a_run_without_a_step_is_not_called_healthy(history):
    empty = history(np.arange(0), {"train/loss": np.zeros(0)})
    assert "Healthy" not in verdict(RunHistory("a", empty, PLAN, {}, {}, [], now=1.0))
