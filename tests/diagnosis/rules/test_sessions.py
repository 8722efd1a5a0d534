import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import plan_of
from jaxpretrain.diagnosis.rules.sessions import discontinuity
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular, WarmupCosine

RNG = np.random.default_rng(0)


def triangular(total, peak=1e-2, end=1e-4):
    return plan_of(AdamW(schedule=Triangular(start=1e-4, peak=peak, end=end, warmup=5)), total, 8)


def cosine(total, end=0.0):
    return plan_of(AdamW(schedule=WarmupCosine(peak=6e-3, end=end, warmup=10)), total, 8)


def run(history, sessions, *, every=1, loss=None, weight=None):
    """A run whose sessions, (last step, plan), follow plans of their own."""
    last = sessions[-1][0]
    steps = np.arange(1, last + 1)
    rates, begun = np.zeros(last), 0
    for end, plan in sessions:
        rates[begun:end] = np.float32(plan.learning_rate(steps[begun:end]))
        begun = end
    shown = np.unique(np.r_[1, steps[steps % every == 0], sessions[0][0], last]) - 1
    loss = 5 - 0.001 * steps + 0.02 * RNG.normal(size=last) if loss is None else loss
    values = {"train/loss": loss, "train/learning_rate": rates}
    if weight is not None:
        values["train/weight"] = weight
    columns = {name: column[shown] for name, column in values.items()}
    marks = [0, *(end for end, _ in sessions[:-1])]
    sessions_begin = history(marks, {"run/num_devices": np.ones(len(marks))})
    return history(steps[shown], columns, **sessions_begin.series)


@pytest.mark.parametrize("every", [1, 3, 10])
def test_a_finished_run_that_is_extended_jumps_although_the_new_plan_says_so(history, every):
    before, now = triangular(20), triangular(40)
    extended = run(history, [(20, before), (40, now)], every=every)
    (finding,) = discontinuity(extended, now)
    new = float(now.learning_rate(np.array([21]))[0])
    assert (finding.name, finding.first) == ("resume_discontinuity", 20)
    assert f"the learning rate goes from 0.0001 to {new:.3g}" in finding.reading
    assert finding.evidence["rate_after"] == pytest.approx(new, rel=1e-3)


@pytest.mark.parametrize("end", [0.0, 1e-4])
def test_it_is_known_with_the_first_report_of_the_session(history, end):
    """A rate that had come down to 0 as well."""
    before, now = cosine(100, end), cosine(200, end)
    (finding,) = discontinuity(run(history, [(100, before), (101, now)]), now)
    assert finding.evidence["rate_before"] == pytest.approx(end)


@pytest.mark.parametrize("every", [1, 7, 20])
@pytest.mark.parametrize("stop", [3, 5, 6, 13, 19])
def test_a_run_that_goes_on_as_planned_does_not_jump(history, every, stop):
    plan = triangular(100)
    assert [*discontinuity(run(history, [(stop, plan), (100, plan)], every=every), plan)] == []


@pytest.mark.parametrize("stop", [3, 5, 10, 19])
def test_nor_does_it_in_a_session_before_the_run_was_extended(history, stop):
    before, now = triangular(20), triangular(40)
    extended = run(history, [(stop, before), (20, before), (40, now)])
    assert [finding.first for finding in discontinuity(extended, now)] == [20]


def test_a_rate_that_stays_the_same_has_not_jumped_whatever_the_plan_says_of_the_past(history):
    before, now = triangular(20), triangular(21)
    assert abs(now.learning_rate(np.array([20]))[0] - 1e-4) > 5e-4
    extended = run(history, [(20, before), (21, now)])
    assert [*discontinuity(extended, now)] == []


def test_a_schedule_that_ends_once_more_at_the_same_rate_is_no_jump(history):
    before, now = triangular(20), triangular(40, peak=1e-4)
    assert [*discontinuity(run(history, [(20, before), (40, now)]), now)] == []


def test_a_batch_of_another_size_is_seen_at_once_and_one_with_more_masked_tokens_is_not(history):
    plan = triangular(100)
    sizes = np.where(np.arange(100) < 40, 128.0, 256.0)
    (finding,) = discontinuity(run(history, [(40, plan), (100, plan)], weight=sizes), plan)
    assert "256 predicted tokens where it had 128" in finding.reading
    masked = RNG.integers(60, 128, 100).astype(float)
    one = run(history, [(40, plan), (100, plan)], weight=masked)
    assert [*discontinuity(one, plan)] == []
    assert [*discontinuity(one.until(41), plan)] == []


def test_a_loss_that_rises_is_compared_with_the_session_before(history):
    plan = triangular(100)
    loss = 5 + 0.02 * RNG.normal(size=100) + np.where(np.arange(100) < 40, 0, 0.5)
    (finding,) = discontinuity(run(history, [(40, plan), (100, plan)], loss=loss), plan)
    assert "the loss rises from 5." in finding.reading


def test_a_batch_that_changes_by_plan_is_no_jump_and_another_is(history):
    """A stage ends at step 50, where the session begins too."""
    optim = AdamW(schedule=Triangular(start=1e-4, peak=1e-2, end=1e-4, warmup=5))
    weight = np.where(np.arange(1, 101) <= 50, 124.0, 248.0)
    for ends, jumps in (((50,), 0), ((20, 50), 0), ((), 1), ((10,), 1)):
        plan = plan_of(optim, 100, 8, ends)
        found = [*discontinuity(run(history, [(50, plan), (100, plan)], weight=weight), plan)]
        assert len(found) == jumps, ends
