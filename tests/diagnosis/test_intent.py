import numpy as np
import pytest

from jaxpretrain.config.serialize import to_dict
from jaxpretrain.diagnosis.intent import plan_in, plan_of
from jaxpretrain.optim.optimizers import AdamW, RateScaling
from jaxpretrain.optim.schedules import Constant, Triangular, WarmupCosine, WarmupStableDecay

SCHEDULES = [
    Triangular(warmup=5000),
    WarmupCosine(warmup=333),
    WarmupStableDecay(warmup=200, decay=1000),
    Constant(),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [10, 9_999, 476_838])
def test_the_table_is_the_schedule(schedule, total):
    plan = plan_of(AdamW(schedule=schedule), total, 8)
    steps = np.unique(np.r_[1:60, np.linspace(1, total, 999).astype(int), 4990:5110])
    steps = steps[steps <= total]
    exact = np.asarray(schedule.build(total)(np.float32(steps))) * np.ones(len(steps))
    np.testing.assert_allclose(plan.learning_rate(steps), exact, rtol=1e-3, atol=1e-7)


def test_phases_tell_where_a_step_lies():
    plan = plan_of(AdamW(schedule=WarmupStableDecay(warmup=200, decay=300)), 1000, 8)
    assert plan.warmup_end == 200
    assert [plan.phase(step) for step in (0, 199, 200, 700, 1000)] == [
        "warmup", "warmup", "stable", "decay", "decay",
    ]  # fmt: skip
    assert plan_of(AdamW(schedule=Constant()), 1000, 8).warmup_end == 0


def test_a_saved_config_gives_its_plan_whatever_else_is_in_it(history):
    optim = {"class": "adamw", **to_dict(AdamW(schedule=Triangular(warmup=7)))}
    document = {
        "config": {"optim": optim, "train": {"duration": 99, "batch_size": 8}, "model": {"gone": 1}}
    }
    plan = plan_in(document, history([], {}))
    assert (plan.total_steps, plan.warmup_end, plan.clip_norm) == (99, 7, 1.0)


@pytest.mark.parametrize("document", [{}, {"config": {"optim": {"class": "new"}}}, {"config": 3}])
def test_without_a_config_the_run_ends_where_it_is_at_the_rates_it_had(history, document):
    run = history([1, 2, 3], {"train/learning_rate": [0.1, 0.2, 0.3]})
    plan = plan_in(document, run)
    assert (plan.total_steps, plan.phases) == (3, [])
    assert plan.learning_rate(np.array([1.5, 9.0])).tolist() == pytest.approx([0.15, 0.3])


@pytest.mark.parametrize("batch_size", [512, 4096])
def test_the_plan_is_the_rate_that_is_used(batch_size):
    """Not the bare schedule: scaling is part of it."""
    optim = AdamW(schedule=Triangular(warmup=50), rate_scaling=RateScaling())
    rate = optim.build(1000, batch_size, {"kernel": np.ones((2, 2), np.float32)}).learning_rate
    steps = np.arange(1, 1001)
    exact = np.asarray(rate(np.float32(steps)))
    np.testing.assert_allclose(
        plan_of(optim, 1000, batch_size).learning_rate(steps), exact, rtol=1e-3
    )
