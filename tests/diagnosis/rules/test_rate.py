import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import plan_of
from jaxpretrain.diagnosis.rules import diagnose
from jaxpretrain.diagnosis.rules.rate import clipping, off_schedule, spent_early, too_high, too_low
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular, WarmupCosine


def names(history, plan):
    return [finding.name for finding in diagnose(history, plan)]


@pytest.mark.parametrize("step", [5_000, 6_000, 20_000])
def test_olmo_7b_flattening_is_the_end_of_its_warmup(olmo_7b, step):
    """The question that a user asked: flat after 5,000 steps at 3e-4; lower the rate?"""
    history, plan = olmo_7b
    (finding,) = diagnose(history.until(step), plan)
    assert (finding.name, finding.severity, finding.first) == ("warmup_ended", "info", 5000)
    assert finding.advice.startswith("Nothing.")
    assert finding.evidence["left"] == pytest.approx(1 - step / 476_838)


def test_olmo_7b_is_told_how_long_it_takes(olmo_7b):
    history, plan = olmo_7b
    (finding,) = diagnose(history.until(5000), plan)
    assert "warm-up ended at step 5,000, 1.0% of the run" in finding.reading
    assert "takes 95.4 times the time so far (7h06m)" in finding.reading


def test_olmo_7b_flattens_and_the_reading_says_by_how_much(olmo_7b):
    history, plan = olmo_7b
    (finding,) = diagnose(history.until(6000), plan)
    assert finding.evidence["fall_before"] > 1.5 * finding.evidence["fall_since"] > 0


def test_before_and_long_after_the_warmup_it_explains_nothing(olmo_7b):
    history, plan = olmo_7b
    assert names(history.until(4990), plan) == []
    assert names(history.until(25_000), plan) == []


def test_a_healthy_update_ratio_is_not_too_low(history):
    plan = plan_of(AdamW(schedule=Triangular(peak=3e-4, warmup=100)), 100_000, 8)
    steps = np.arange(10, 2000, 10)
    rates = plan.learning_rate(steps)
    shared = {"train/loss": 3 - steps / 1e5, "train/learning_rate": rates}
    norms = {"train/param_norm": 0 * steps + 100.0}
    healthy = history(steps, shared | norms | {"train/update_norm": 500 * rates})
    assert [*too_low(healthy, plan)] == []
    (finding,) = too_low(history(steps, shared | norms | {"train/update_norm": 0.1 * rates}), plan)
    assert finding.evidence["move"] == pytest.approx(0.1 * 1.65e-4 * 1e5 / 100, rel=0.02)


def test_a_schedule_that_ends_long_before_the_run_is_noticed_when_it_has_ended(history):
    plan = plan_of(
        AdamW(schedule=WarmupCosine(peak=1e-3, end=0.0, warmup=10, horizon=500)), 1000, 8
    )
    steps = np.arange(1, 1001)
    run = history(
        steps, {"train/loss": 1 / steps, "train/learning_rate": plan.learning_rate(steps)}
    )
    assert [*spent_early(run.until(400), plan)] == []
    (finding,) = spent_early(run.until(600), plan)
    assert 450 < finding.first < 500
    assert [*spent_early(run, plan)] == []


def test_a_rate_that_is_not_the_schedules_is_named(history):
    plan = plan_of(AdamW(schedule=Triangular(peak=1e-3, warmup=10)), 1000, 8)
    steps = np.arange(1, 101)
    rates = plan.learning_rate(steps)
    right = history(steps, {"train/learning_rate": np.float32(rates)})
    wrong = history(steps, {"train/learning_rate": np.where(steps > 60, 0.5 * rates, rates)})
    assert [*off_schedule(right, plan)] == []
    (finding,) = off_schedule(wrong, plan)
    assert finding.first == 61


def test_a_loss_that_rises_with_the_rate_in_the_warmup_names_the_rate_that_was_good(history):
    plan = plan_of(AdamW(schedule=Triangular(start=0.0, peak=1e-3, warmup=1000)), 10_000, 8)
    steps = np.arange(1, 801)
    noise = 0.01 * np.random.default_rng(0).normal(size=800)
    rising = 5 - 0.005 * steps + 0.01 * np.maximum(steps - 400, 0) + noise
    norms = np.where(steps > 400, 3.0, 1.0)
    run = history(steps, {"train/loss": rising, "train/grad_norm": norms})
    (finding,) = too_high(run, plan)
    assert finding.evidence["good_rate"] == pytest.approx(4e-4, rel=0.05)
    assert finding.evidence["grad_norm_growth"] == pytest.approx(3.0)
    assert 380 <= finding.first <= 420
    assert [*too_high(run.until(400), plan)] == []


@pytest.mark.parametrize(
    ("norm", "severity"), [(0.5, None), (1.5, "info"), (2.5, "warning"), (2.0, "info")]
)
def test_gradients_that_are_nearly_all_clipped_are_found(history, norm, severity):
    plan = plan_of(AdamW(schedule=Triangular(warmup=10), clip_norm=1.0), 1000, 8)
    run = history(np.arange(1, 201), {"train/grad_norm": np.full(200, norm)})
    found = [*clipping(run, plan)]
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])
    assert [*clipping(run.until(41), plan)] == []  # fewer than 32 reports after the warm-up
