import numpy as np
import pytest
from scipy import stats

from jaxpretrain.diagnosis.clock import PARTS
from jaxpretrain.diagnosis.remaining import checks, estimate, spent


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


def test_each_part_of_the_clock_counts_once(history):
    seconds = dict(zip(PARTS, 10.0 ** np.arange(6), strict=True))
    run = history([1, 2], {f"time/{part}_seconds": [0.0, x] for part, x in seconds.items()})
    rows = spent(run)
    assert rows.units.tolist() == [1.0, 2.0]  # steps, where units are not known
    assert rows.training[-1] == seconds["train"] + seconds["data_wait"]
    assert rows.pauses[-1] == seconds["eval"] + seconds["save"]
    assert rows.total[-1] == 111_111.0


@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_the_interval_is_the_larger_of_the_spread_and_the_drift_of_the_pace(history, drift):
    paces = 1 + 0.1 * np.sin(np.arange(16)) + drift * (np.arange(16) >= 8)
    steps = np.arange(1, 18)
    seconds = 5 + np.r_[0, np.cumsum(paces)]
    marks = {"run/num_devices": history([0], {"run/num_devices": [4]})["run/num_devices"]}
    run = history(steps, {"train/tokens": 10 * steps, "time/train_seconds": seconds}, **marks)
    time = estimate(run, 57)
    assert time is not None
    left = 400.0  # forty steps of ten units
    per_unit = paces.sum() / 160
    assert time.remaining == pytest.approx(left * per_unit)
    deviation = paces.std(ddof=1) / 10 * np.sqrt(1 / 16 + 1 / (left / 10))
    halves = abs(paces[:8].mean() - paces[8:].mean()) / 10 / 2
    error = max(stats.t.ppf(0.95, 15) * deviation, halves) / (paces.mean() / 10)
    assert (halves > stats.t.ppf(0.95, 15) * deviation) == (drift > 0)
    assert time.high - time.remaining == pytest.approx(left * per_unit * error)
    assert time.low == pytest.approx(max(time.remaining * (1 - error), 0.0))
    assert (time.step, time.total_steps, time.num_devices) == (17, 57, 4)
    assert time.spent == pytest.approx(seconds[-1])
    assert time.total == pytest.approx(time.spent + time.remaining)
    assert time.finish == pytest.approx(17 + time.remaining)  # a line a second
    assert time.device_hours == pytest.approx(time.total * 4 / 3600)


def test_with_two_blocks_the_interval_is_as_wide_as_the_rest(history):
    time = estimate(clock(history, [1, 2, 3], 2.0), 10)
    assert time is not None
    assert (time.low, time.remaining, time.high) == (0.0, 14.0, 28.0)
    time = estimate(clock(history, [1, 2, 3, 4], 2.0), 10)
    assert time is not None
    assert time.low == time.high == time.remaining == 12.0


def test_remaining_steps_have_as_many_units_as_the_last(history):
    """The batch has doubled after step 2."""
    units, seconds = {"train/tokens": [10, 20, 40, 60]}, {"time/train_seconds": [1, 2, 4, 6]}
    time = estimate(history([1, 2, 3, 4], units | seconds), 8)
    assert time is not None
    assert time.remaining == pytest.approx(8.0)


@pytest.mark.parametrize(("length", "steps"), [(19, []), (20, [2, 4, 10])])
def test_early_estimates_are_checked_from_twenty_reports_on(history, length, steps):
    assert [check.step for check in checks(clock(history, range(1, length + 1), 1.0))] == steps
