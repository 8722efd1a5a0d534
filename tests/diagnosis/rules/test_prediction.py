from dataclasses import replace

import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.rules.prediction import another_size, scored
from jaxpretrain.storage.run_documents import PredictedScore, PredictionFile

SAID = PredictionFile("eval/a/loss", 2.9, 2.8, 3.1, "1970-01-01T00:00:00+00:00", "hash", 30.0)
PLAN = TrainingPlan(100, [], lambda s: 0 * np.asarray(s), prediction=SAID)


@pytest.fixture
def run(history):
    return history([50, 100], {"eval/a/loss": [4.0, 3.0], "eval/arc/acc": [0.3, 0.5]})


def test_a_result_inside_the_interval_is_a_note_with_its_error(run):
    (finding,) = scored(run, PLAN)
    assert finding.severity == "info"
    assert finding.evidence["error"] == pytest.approx(2.9 / 3.0 - 1)
    assert finding.reading.startswith("The prediction was 2.9000 for eval/a/loss, and 3.0000 came")
    assert "an error of -3.33%, inside" in finding.reading
    assert "30.0 times beyond" in finding.reading


def test_a_result_outside_is_a_warning_also_of_a_task(run):
    task = PredictedScore("eval/arc/acc", 0.7, 0.6, 0.8)
    _, missed = scored(run, replace(PLAN, prediction=replace(SAID, scores=(task,))))
    assert (missed.severity, missed.subject) == ("warning", "eval/arc/acc")


@pytest.mark.parametrize(
    "said", [replace(SAID, hindcast=True), replace(SAID, time="2020-01-01T00:00:00+00:00")]
)
def test_what_was_said_after_the_start_is_a_hindcast(run, said):
    (finding,) = scored(run, replace(PLAN, prediction=said))
    assert finding.reading.startswith("A hindcast, made after the run began,")


@pytest.mark.parametrize("step", [1, 100])
def test_a_run_of_another_size_has_no_score_and_is_told_from_the_start(history, step):
    sizes = {"run/parameters": [5e6, 5e6], "run/tokens": [1e8, 1e8]}
    run = history([1, 100], {"eval/a/loss": [4.0, 3.0], **sizes}).until(step)
    plan = replace(PLAN, prediction=replace(SAID, parameters=5.1e6, tokens=2e8))
    (finding,) = another_size(run, plan)
    words = (
        "is about 5.1M parameters and 200M tokens, and the run has 5M parameters and 100M tokens"
    )
    assert words in finding.reading
    assert finding.severity == "warning"
    assert [*scored(run, plan)] == []


def test_a_run_of_the_predicted_size_is_scored(history):
    sizes = {"run/parameters": [5e6, 5e6], "run/tokens": [1e8, 1e8]}
    plan = replace(PLAN, prediction=replace(SAID, parameters=5.1e6, tokens=1e8))
    for known in (sizes, {}):  # older runs do not say what size they have
        run = history([1, 100], {"eval/a/loss": [4.0, 3.0], **known})
        assert [*another_size(run, plan)] == []
        assert len([*scored(run, plan)]) == 1


def test_nothing_is_scored_before_the_end_or_without_a_prediction(run):
    assert [*scored(run.until(50), PLAN)] == []
    assert [*scored(run, replace(PLAN, prediction=None))] == []
    assert [*scored(run, replace(PLAN, prediction=replace(SAID, metric="eval/b/loss")))] == []
