import numpy as np
import pytest

from jaxpretrain.diagnosis.forecast import forecast
from jaxpretrain.diagnosis.intent import plan_of
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular, WarmupStableDecay

HELD_OUT = [
    *(f"forecast_triangular{i}" for i in (1, 2, 3)),
    *(f"forecast_cosine{i}" for i in (1, 2, 3, 4)),
    *(f"forecast_stable{i}" for i in (1, 2, 3)),
]


def test_the_ends_of_runs_are_foreseen_from_their_first_30_percent(recorded):
    errors, inside, trusted = [], [], []
    for name in HELD_OUT:
        history, plan = recorded(name)
        last = plan.total_steps
        end = history.loss.between(0.95 * last, last).values.mean()
        early = forecast(history.until(0.3 * last), plan)
        assert early is not None
        errors.append(abs(early.loss / end - 1))
        inside.append(early.low <= end <= early.high)
        trusted.append(not early.doubts)
    assert np.sum(np.array(errors) < 0.02) >= 8
    assert np.mean(errors) < 0.01
    assert np.sum(inside) >= 8
    assert np.sum(trusted) >= 8


@pytest.mark.parametrize("name", ["healthy_stable_low", "healthy_cosine", "healthy_cosine_low"])
def test_a_run_too_short_for_the_law_is_not_trusted(recorded, name):
    """Their first 30% are 120 steps, 40 of them warm-up; the law is off by 3% to 8%."""
    history, plan = recorded(name)
    early = forecast(history.until(0.3 * plan.total_steps), plan)
    assert early is not None and "the loss is still near where it began" in early.doubts


def test_a_decay_to_come_is_foreseen_and_a_rate_that_stays_gives_none(history):
    """The same curve so far, under two plans."""
    steps = np.arange(1, 501)
    falling = plan_of(AdamW(schedule=WarmupStableDecay(warmup=20, decay=300)), 1000, 8)
    staying = plan_of(AdamW(schedule=WarmupStableDecay(warmup=20, decay=0)), 1000, 8)
    noise = 0.02 * np.random.default_rng(0).normal(size=500)
    run = history(steps, {"train/loss": 2 + 6 * steps**-0.3 + noise})
    with_decay, without = forecast(run, falling), forecast(run, staying)
    assert with_decay is not None and without is not None
    assert with_decay.loss < without.loss - 0.05
    assert without.low < 2 + 6 * 1000**-0.3 < without.high


def test_more_steps_give_less_loss_and_each_doubling_less_than_the_one_before(recorded):
    history, plan = recorded("forecast_cosine1")
    early = forecast(history.until(450), plan)
    assert early is not None
    half, twice, four_times = (loss for _, loss in early.longer)
    assert half > early.loss > twice > four_times
    assert half - early.loss > early.loss - twice > twice - four_times


def test_it_says_where_it_is_not_to_be_trusted(history, recorded):
    run, plan = recorded("forecast_triangular1")
    early = forecast(run.until(140), plan)
    assert early is not None and "only 9% of the run is known" in early.doubts
    steps = np.arange(1, 1001)
    wave = 3 + 0.5 * np.sin(steps / 60)
    plan = plan_of(AdamW(schedule=Triangular(warmup=10)), 9000, 8)
    odd = forecast(history(steps, {"train/loss": wave}), plan)
    assert odd is not None and "the curve so far does not follow the law" in odd.doubts


@pytest.mark.parametrize("step", [0, 10, 60])
def test_nothing_is_said_of_a_run_that_has_just_begun(recorded, step):
    history, plan = recorded("forecast_cosine1")
    assert forecast(history.until(step), plan) is None
