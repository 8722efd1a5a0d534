import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.rules.speed import input_bound, slow_host, slow_steps, uneven_steps

PLAN = TrainingPlan(1000, [], lambda s: 0 * np.asarray(s) + 1e-3)
STEPS = np.arange(10, 200, 10)


def compared(history, slowest, spread):
    values = {"perf/slowest_host": 0 * STEPS + slowest, "perf/host_spread": 0 * STEPS + spread}
    return history(STEPS, values)


def test_a_process_that_keeps_the_others_waiting_is_named(history):
    (finding,) = slow_host(compared(history, 3, 0.4), PLAN)
    assert (finding.severity, finding.subject) == ("warning", "process 3")
    assert "Process 3 keeps the others waiting for 40% of each step" in finding.reading
    assert [*slow_host(compared(history, 3, 0.4).until(30), PLAN)] == []  # too few comparisons


def test_processes_that_are_nearly_alike_or_slow_in_turn_are_none(history):
    assert [*slow_host(compared(history, 3, 0.05), PLAN)] == []
    assert [*slow_host(compared(history, STEPS // 10 % 4, 0.4), PLAN)] == []


def timed(history, seconds, waiting=None):
    """A run with a report a step, of a thousand tokens each."""
    steps = np.arange(1, len(seconds) + 1)
    values = {"train/tokens": 1000 * steps, "time/train_seconds": np.cumsum(seconds)}
    if waiting is not None:
        values |= {
            "time/data_wait_seconds": np.cumsum(waiting),
            "perf/data_wait_fraction": waiting / (seconds + waiting),
        }
    return history(steps, values)


def test_waiting_for_data_is_found_once_it_lasts(history):
    seconds = np.ones(200)
    waiting = np.where(np.arange(200) >= 150, 0.5, 0.0)
    run = timed(history, seconds, waiting)
    assert [*input_bound(run.until(150), PLAN)] == []
    (finding,) = input_bound(run, PLAN)
    assert finding.evidence["share"] == pytest.approx(1 / 3)
    assert "without the wait the run would be 1.5 times as fast" in finding.advice
    assert [*slow_steps(run, PLAN)] == []  # without the wait they are as fast as before


def test_steps_that_take_longer_are_found_with_their_factor(history):
    run = timed(history, np.where(np.arange(200) >= 150, 1.7, 1.0))
    assert [*slow_steps(run.until(150), PLAN)] == []
    (finding,) = slow_steps(run, PLAN)
    assert finding.evidence["factor"] == pytest.approx(1.7)
    assert 150 < finding.first <= 200
    slower = timed(history, np.where(np.arange(200) >= 150, 1.4, 1.0))
    assert [*slow_steps(slower, PLAN)] == []


def test_a_few_slow_steps_are_found_with_their_cost(history):
    seconds = np.ones(200)
    seconds[::20] = 5.0
    (finding,) = uneven_steps(timed(history, seconds), PLAN)
    # The first report has none before it, so nine of ten count, each with four seconds too many.
    assert finding.evidence["cost"] == pytest.approx(9 * 4 / (seconds.sum() - 5))
    assert (finding.first, finding.last) == (21, 181)
    assert [*uneven_steps(timed(history, np.ones(200)), PLAN)] == []
