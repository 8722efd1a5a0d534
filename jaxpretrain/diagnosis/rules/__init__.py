"""Diagnosis: from a history and a plan to findings, by rules that are pure functions.

A rule judges what is known at the end of the history it is given. All thresholds are named where
they are used; tests that need a sample ask for a probability below 1%, because a run is judged
many times.
"""

from __future__ import annotations

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.diagnosis.rules import curve, data, evaluations, layers, rate, sessions, speed

RULES = (
    curve.not_finite,
    curve.divergence,
    curve.spikes,
    curve.plateau,
    curve.skipped_steps,
    curve.empty_batches,
    rate.warmup_ended,
    rate.too_high,
    rate.too_low,
    rate.spent_early,
    rate.off_schedule,
    rate.clipping,
    layers.attention_logits,
    layers.blow_up,
    evaluations.overfitting,
    evaluations.disagreement,
    evaluations.within_noise,
    data.epochs,
    data.repetition,
    speed.input_bound,
    speed.slow_steps,
    speed.uneven_steps,
    speed.slow_host,
    sessions.discontinuity,
)


DEEPER = {"divergence", "learning_rate_too_high", "not_finite"}
"""Where one of these holds,"""
OUTWEIGHED = {"warmup_ended", "spike", "always_clipping"}
"""these would say that all is well, or the same thing again."""


def diagnose(history: History, plan: Plan) -> list[Finding]:
    """All findings at the end of `history`, in order of their first steps."""
    findings = [finding for rule in RULES for finding in rule(history, plan)]
    if any(finding.name in DEEPER for finding in findings):
        findings = [f for f in findings if f.name not in OUTWEIGHED or f.is_over]
    return sorted(findings, key=lambda finding: (finding.first, finding.name))
