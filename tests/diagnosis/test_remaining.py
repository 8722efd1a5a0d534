import numpy as np
import pytest

from jaxpretrain.diagnosis.remaining import checks, estimate


def clock(history, steps, per_step, *, compile_seconds=0.0, eval_every=0, **others):
    steps = np.asarray(steps)
    evals = steps // eval_every if eval_every else 0 * steps
    return history(
        steps,
        {
            "train/tokens": steps * 1000,
            "time/train_seconds": np.cumsum(per_step * np.diff(steps, prepend=0)),
            "time/compile_seconds": compile_seconds + 0.0 * steps,
            "time/eval_seconds": 10.0 * evals,
        },
        **others,
    )


def test_olmo_7b_takes_95_times_what_its_warmup_took(olmo_7b):
    history, plan = olmo_7b
    time = estimate(history.until(5000), plan.total_steps)
    assert time is not None
    assert time.factor == pytest.approx(95.4, abs=0.3)
    # Evaluations and saves count as they occur: five times 120 s in 5,000 steps of 5 s.
    assert time.total == pytest.approx(476_838 * (5 + 0.12), rel=0.005)


def test_compilation_does_not_recur(history):
    run = clock(history, range(10, 101, 10), 2.0, compile_seconds=500)
    time = estimate(run, 1000)
    assert time is not None
    assert (time.spent, time.remaining) == pytest.approx((700, 1800))


def test_evaluations_go_on_as_they_occurred(history):
    run = clock(history, range(1, 1001), 2.0, eval_every=100)
    time = estimate(run, 2000)
    assert time is not None
    assert time.remaining == pytest.approx(2000 + 100, rel=0.01)


def test_the_interval_widens_with_the_spread_and_holds_the_truth(history):
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(40):
        paces = 1 + 0.3 * rng.random(400).repeat(5)
        run = clock(history, range(1, 2001), paces)
        early = estimate(run.until(400), 2000)
        assert early is not None
        actual = float(paces[400:].sum())
        inside += early.low <= actual <= early.high
    assert 30 <= inside <= 40
    steady = estimate(clock(history, range(1, 401), 1.0), 2000)
    assert steady is not None
    assert steady.high - steady.low == pytest.approx(0, abs=1e-6)


def test_a_drift_does_not_average_out(history):
    run = clock(history, range(1, 1001), np.linspace(1, 2, 1000))
    time = estimate(run, 2000)
    assert time is not None
    assert time.high >= 1000 * 1.7


def test_device_hours_are_those_of_all_devices(history):
    mark = history([0], {"run/num_devices": [8]})["run/num_devices"]
    run = clock(history, range(1, 101), 36.0, **{"run/num_devices": mark})
    time = estimate(run, 1000)
    assert time is not None
    assert time.device_hours == pytest.approx(8 * 10)


def test_nothing_is_said_before_there_is_a_pace(history):
    assert estimate(history([1], {"time/train_seconds": [3.0]}), 100) is None
    assert estimate(history([1, 2], {"train/loss": [3.0, 2.0]}), 100) is None


def test_early_estimates_are_compared_with_what_happened(history):
    slowing = np.r_[np.ones(500), 3 * np.ones(500)]
    found = checks(clock(history, range(1, 1001), slowing))
    assert [check.step for check in found] == [10, 20, 50, 100, 200, 500]
    assert all(check.until == 1000 for check in found)
    assert found[-1].actual == pytest.approx(2000)
    assert found[-1].error == pytest.approx(-0.5, abs=0.01)
    steady = checks(clock(history, range(1, 1001), 1.0))
    assert all(abs(check.error) < 1e-9 for check in steady)


def test_without_progress_in_steps_or_units_there_is_no_estimate(history):
    seconds = {"time/train_seconds": [1.0, 2.0, 3.0]}
    units = {"train/tokens": [100, None, None]}  # known of one step alone
    assert estimate(history([1, 2, 3], seconds | units), 10) is None
    assert estimate(history([1, 2, 2], seconds), 10) is None
    assert estimate(history([1, 2, 3], seconds), 10) is not None
