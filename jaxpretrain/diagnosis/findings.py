"""Findings: what stands out in a run, with the evidence, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
Name = Literal[
    "warmup_ended",
    "plateau",
    "spike",
    "divergence",
    "not_finite",
    "empty_batches",
    "skipped_steps",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "learning_rate_spent",
    "learning_rate_off_schedule",
    "always_clipping",
    "attention_logits_growing",
    "layer_blow_up",
    "overfitting",
    "disagreement",
    "evaluation_within_noise",
    "repeated_data",
    "repeated_batches",
    "input_bound",
    "slow_steps",
    "uneven_steps",
    "slow_host",
    "resume_discontinuity",
]


@dataclass(frozen=True)
class Finding:
    """Something that stands out between two steps."""

    name: Name
    severity: Severity
    first: int
    """The step from which on it shows."""
    last: int
    """The last step of which it is known to show."""
    reading: str
    """What it means, in a sentence or two."""
    advice: str
    """What to do, which may be nothing."""
    evidence: Mapping[str, float]
    """The numbers it rests on, by name."""
    signal: str = "train/loss"
    """The metric in whose curve it shows."""
    subject: str = ""
    """What it is about, where one name stands for several: an evaluation set, say."""
    is_over: bool = False
    """Whether it belongs to the past: it no longer holds at the end of the history."""

    @property
    def title(self) -> str:
        """The name as words."""
        words = self.name.replace("warmup", "warm-up").replace("_", " ").capitalize()
        return f"{words} ({self.subject})" if self.subject else words

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same finding at another time."""
        return self.name, self.subject


def worst(findings: list[Finding]) -> Severity | None:
    """The highest severity among findings that hold; None when nothing does."""
    holding = [SEVERITIES.index(f.severity) for f in findings if not f.is_over]
    return SEVERITIES[max(holding)] if holding else None
