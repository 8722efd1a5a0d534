import numpy as np

from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.rules.evaluations import disagreement, overfitting, within_noise

PLAN = TrainingPlan(1000, [("warmup", 0), ("decay", 100)], lambda s: 0 * np.asarray(s) + 1e-3)
STEPS = np.arange(1, 1001)
POINTS = np.arange(0, 1001, 100)


def run(history, train, **curves):
    others = {name: history(POINTS, {name: values})[name] for name, values in curves.items()}
    rng = np.random.default_rng(0)
    return history(STEPS, {"train/loss": train + 0.02 * rng.normal(size=1000)}, **others)


def test_validation_that_rises_while_training_falls_is_overfitting(history):
    falling = 5 - STEPS / 500
    turning = 5 - POINTS / 500 + 2 * np.maximum(POINTS - 500, 0) / 500
    (finding,) = overfitting(run(history, falling, **{"eval/a/loss": turning}), PLAN)
    assert (finding.subject, finding.first) == ("a", 500)
    assert "step 500" in finding.advice
    assert [*overfitting(run(history, falling, **{"eval/a/loss": 5 - POINTS / 500}), PLAN)] == []


def test_validation_that_rises_with_training_is_something_else(history):
    turning = 5 - POINTS / 500 + 2 * np.maximum(POINTS - 500, 0) / 500
    train = np.interp(STEPS, POINTS, turning)
    assert [*overfitting(run(history, train, **{"eval/a/loss": turning}), PLAN)] == []


def test_a_training_loss_that_only_comes_down_from_its_own_rise_is_no_overfitting(history):
    """As after a rate far too high: both losses end above where they began."""
    train = np.where(STEPS < 50, 6.2 + STEPS, 60 - 0.05 * STEPS)
    curve = 6.2 + 0.7 * np.minimum(POINTS, 500) / 100
    assert [*overfitting(run(history, train, **{"eval/a/loss": curve}), PLAN)] == []


def test_one_evaluation_that_is_a_little_worse_is_noise(history):
    curve = 5 - POINTS / 500 + 0.01 * (-1.0) ** np.arange(11)
    assert [*overfitting(run(history, 5 - STEPS / 500, **{"eval/a/loss": curve}), PLAN)] == []


def tasks(accuracy, error=0.02):
    return {
        "eval/a/loss": 5 - POINTS / 500,
        "eval/arc_easy/accuracy": accuracy,
        "eval/arc_easy/accuracy_stderr": 0 * POINTS + error,
    }


def test_tasks_that_do_not_follow_the_loss_are_told_with_their_noise(history):
    (finding,) = disagreement(run(history, 5 - STEPS / 500, **tasks(0 * POINTS + 0.25)), PLAN)
    assert finding.severity == "info"
    assert finding.evidence["visible"] == np.float64(2 * np.hypot(0.02, 0.02))
    worse = tasks(0.5 - 0.2 * POINTS / 1000)
    (finding,) = disagreement(run(history, 5 - STEPS / 500, **worse), PLAN)
    assert finding.severity == "warning"
    better = tasks(0.25 + 0.2 * POINTS / 1000)
    assert [*disagreement(run(history, 5 - STEPS / 500, **better), PLAN)] == []


def test_losses_on_tasks_improve_when_they_fall(history):
    curves = tasks(0 * POINTS + 0.25)
    bits = {"eval/arc_easy/bpb": 2 - POINTS / 1000, "eval/arc_easy/bpb_stderr": 0 * POINTS + 0.01}
    assert [*disagreement(run(history, 5 - STEPS / 500, **curves, **bits), PLAN)] == []


def test_evaluations_within_noise_are_called_that(history):
    still = run(history, 5 - STEPS / 500, **tasks(0.25 + 0.01 * (-1.0) ** np.arange(11)))
    (finding,) = within_noise(still, PLAN)
    assert (finding.first, finding.last, finding.severity) == (900, 1000, "info")
    jumping = run(history, 5 - STEPS / 500, **tasks(0.25 + 0.1 * (-1.0) ** np.arange(11)))
    assert [*within_noise(jumping, PLAN)] == []
