import numpy as np

from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.diagnosis.rules.speed import slow_host

PLAN = Plan(1000, [], lambda s: 0 * np.asarray(s) + 1e-3)
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
