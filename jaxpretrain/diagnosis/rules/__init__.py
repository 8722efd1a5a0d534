"""The rules that judge a run. Each is a function from a history and a plan to findings.

A rule judges the end of the history that it is given, and a run is judged again and again. To add
a finding:

1. Write its rule in a module of this folder: the thresholds as constants, and a function that
   yields a `Finding` with the name of the finding.
2. Add a row to `RULES` below. The name is then a value of `monitor.stop_on` too.
3. Describe it in the table of docs/report.md, and test it in tests/diagnosis/rules.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.rules import (
    curve,
    data,
    evaluations,
    layers,
    prediction,
    rate,
    sessions,
    speed,
)


@dataclass(frozen=True)
class Rule:
    """A rule, with what the log and the report do with its findings."""

    name: str
    """The name of its findings."""
    judge: Callable[[History, TrainingPlan], Iterator[Finding]]
    """The function that looks for them."""
    outweighs: tuple[str, ...] = ()
    """The findings that are dropped while one of this rule holds: they would deny or repeat it."""
    end_is_news: Literal["always", "warnings", "never"] = "warnings"
    """The findings whose end the log reports; `never` is for things that have happened."""
    is_replayed: bool = True
    """True where the report looks for findings of earlier times that are over by now."""


_MINOR = ("warmup_ended", "spike", "always_clipping")

RULES: tuple[Rule, ...] = (
    Rule("warmup_ended", rate.warmup_ended),
    Rule("plateau", curve.plateau),
    # Only all rows show spikes, and those of the past are among the findings of the end.
    Rule("spike", curve.spikes, end_is_news="always", is_replayed=False),
    Rule("divergence", curve.divergence, outweighs=_MINOR),
    Rule("not_finite", curve.not_finite, outweighs=_MINOR),
    Rule("empty_batches", curve.empty_batches),
    Rule("skipped_steps", curve.skipped_steps, end_is_news="never"),
    Rule("learning_rate_too_high", rate.too_high, outweighs=_MINOR),
    Rule("learning_rate_too_low", rate.too_low),
    Rule("learning_rate_spent", rate.spent_early),
    # Learning rates of the past may have followed another plan.
    Rule("learning_rate_off_schedule", rate.off_schedule, is_replayed=False),
    Rule("always_clipping", rate.clipping),
    Rule("attention_logits_growing", layers.attention_logits),
    Rule("layer_blow_up", layers.blow_up),
    Rule("overfitting", evaluations.overfitting),
    Rule("disagreement", evaluations.disagreement),
    Rule("evaluation_within_noise", evaluations.within_noise),
    Rule("repeated_data", data.epochs),
    Rule("repeated_batches", data.repetition),
    Rule("input_bound", speed.input_bound),
    Rule("slow_steps", speed.slow_steps),
    Rule("uneven_steps", speed.uneven_steps),
    Rule("slow_host", speed.slow_host),
    Rule("resume_discontinuity", sessions.discontinuity, end_is_news="never"),
    Rule("prediction_scored", prediction.scored, end_is_news="never", is_replayed=False),
    Rule("prediction_of_another_size", prediction.another_size, is_replayed=False),
)
"""All rules, in the order of the documentation."""

NAMES = tuple(rule.name for rule in RULES)
"""The names of all findings, which `monitor.stop_on` takes."""

BY_NAME = {rule.name: rule for rule in RULES}
"""The rules by the names of their findings."""


def diagnose(history: History, plan: TrainingPlan) -> list[Finding]:
    """Returns all findings at the end of a history, in the order of their first steps."""
    findings = [finding for rule in RULES for finding in rule.judge(history, plan)]
    outweighed = {name for finding in findings for name in BY_NAME[finding.name].outweighs}
    findings = [f for f in findings if f.name not in outweighed or f.is_over]
    return sorted(findings, key=lambda finding: (finding.first, finding.name))
