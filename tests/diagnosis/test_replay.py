import numpy as np

from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.diagnosis.replay import findings_over_time


def test_what_has_passed_is_told_as_past(history):
    plan = Plan(600, [], lambda s: 0 * np.asarray(s) + 1e-3)
    steps = np.arange(1, 601)
    loss = 5 - 0.002 * steps + 0.02 * np.random.default_rng(0).normal(size=600)
    loss[200:320] += 4
    found = findings_over_time(history(steps, {"train/loss": loss}), plan)
    (finding,) = (one for one in found if one.name == "divergence")
    assert (finding.severity, finding.is_over) == ("error", True)
    assert 160 <= finding.first <= 201


def test_notes_of_the_past_are_left_out(recorded):
    history, plan = recorded("healthy_triangular")
    assert [f.name for f in findings_over_time(history.until(50), plan)] == ["warmup_ended"]
    assert findings_over_time(history, plan) == []


def test_what_holds_is_told_once(recorded):
    history, plan = recorded("clipping")
    findings = findings_over_time(history, plan)
    assert [f.name for f in findings if not f.is_over] == ["always_clipping"]
    assert len({f.key for f in findings}) == len(findings)
