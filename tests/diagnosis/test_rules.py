"""Recorded runs, judged again and again on their way, as a run is while it goes."""

import numpy as np
import pytest

from jaxpretrain.diagnosis.findings import SEVERITIES, worst
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.rules import BY_NAME, NAMES, RULES, diagnose

HEALTHY = (
    "healthy_triangular",
    "healthy_triangular_low",
    "healthy_triangular_long",
    "healthy_triangular_slow",
    "healthy_cosine",
    "healthy_cosine_low",
    "healthy_cosine_long",
    "healthy_stable",
    "healthy_stable_low",
    "healthy_stable_long",
    "resumed",
)
# Scenario -> what must be found, how severe it is, and when it may come up first and must at last.
WRONG = {
    "rate_too_high": ("learning_rate_too_high", "warning", 30, 200),
    "rate_too_low": ("learning_rate_too_low", "warning", 40, 60),
    "divergence": ("divergence", "error", 40, 400),
    "clipping": ("always_clipping", "warning", 40, 120),
    "attention_logits_growing": ("attention_logits_growing", "warning", 50, 200),
    "layer_blow_up": ("layer_blow_up", "warning", 210, 250),
    "plateau": ("plateau", "warning", 80, 200),
    "frozen_data": ("overfitting", "warning", 40, 200),
    "duplicated_data": ("repeated_batches", "warning", 80, 200),
    "spike": ("spike", "warning", 200, 204),
    "bad_batch": ("not_finite", "error", 150, 150),
    "bad_batch_skipped": ("skipped_steps", "warning", 150, 150),
    "throttled": ("input_bound", "warning", 80, 150),
    "slow_steps": ("slow_steps", "warning", 250, 350),
    "resumed_other_batch": ("resume_discontinuity", "warning", 201, 210),
    "resumed_other_rate": ("resume_discontinuity", "warning", 201, 210),
}


def found_on_the_way(history, plan):
    """(step, finding) of all that held at some step, at each report."""
    for step in history["train/loss"].steps:
        for finding in diagnose(history.until(int(step)), plan):
            if not finding.is_over:
                yield int(step), finding


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong_with_a_healthy_run_at_any_step(recorded, name):
    history, plan = recorded(name)
    notes, alarms = set(), []
    for step, finding in found_on_the_way(history, plan):
        if finding.severity == "info":
            notes.add(finding.name)
        else:
            alarms.append((step, finding.name, finding.reading))
    assert not alarms
    assert "warmup_ended" in notes


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_in_time(recorded, name):
    history, plan = recorded(name)
    expected, severity, earliest, latest = WRONG[name]
    when = [
        step
        for step, finding in found_on_the_way(history, plan)
        if finding.name == expected and finding.severity == severity
    ]
    assert when
    assert earliest <= when[0] <= latest


@pytest.mark.parametrize("name", [*HEALTHY, *WRONG])
def test_findings_are_whole(recorded, name):
    history, plan = recorded(name)
    findings = diagnose(history, plan)
    for finding in findings:
        assert finding.name in NAMES
        assert finding.severity in SEVERITIES
        assert 0 <= finding.first <= finding.last <= history.step
        assert finding.reading.endswith((".", ")")) and finding.advice.endswith(".")
        assert all(value == value for value in finding.evidence.values())
        assert len(history[finding.signal])
    assert len({finding.key for finding in findings}) == len(findings)
    assert worst(findings) in (None, *SEVERITIES)


@pytest.mark.parametrize("name", [*HEALTHY, *WRONG])
def test_each_rule_makes_findings_of_its_own_name(recorded, name):
    history, plan = recorded(name)
    for rule in RULES:
        assert {finding.name for finding in rule.judge(history, plan)} <= {rule.name}


def test_names_are_unique_and_rules_outweigh_rules():
    assert len(BY_NAME) == len(RULES)
    assert {name for rule in RULES for name in rule.outweighs} <= set(NAMES)


def test_a_divergence_outweighs_what_would_say_that_all_is_well(history):
    plan = TrainingPlan(1000, [("warmup", 0), ("decay", 290)], lambda s: 0 * np.asarray(s) + 1e-3)
    steps = np.arange(1, 301)
    falling = 5 - 0.002 * steps + 0.02 * np.random.default_rng(0).normal(size=300)
    rising = falling + np.where(steps > 200, 2.0, 0.0)
    assert _names(history(steps, {"train/loss": falling}), plan) == ["warmup_ended"]
    found = _names(history(steps, {"train/loss": rising}), plan)
    assert found == ["learning_rate_too_high", "divergence"]


def _names(history, plan):
    return [finding.name for finding in diagnose(history, plan) if not finding.is_over]
