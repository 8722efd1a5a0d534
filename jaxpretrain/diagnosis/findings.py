"""Findings: what stands out in a run, the evidence, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """An observation about some steps of a run."""

    name: str
    """The name of the rule that made it."""
    first: int
    """The first step that shows it."""
    last: int
    """The last step that is known to show it."""
    reading: str
    """The meaning in a sentence or two."""
    advice: str
    """The advice, which may be to do nothing."""
    evidence: Mapping[str, float]
    """The numbers that support it, by name."""
    severity: Severity = "warning"
    signal: str = "train/loss"
    """The metric whose curve shows it."""
    subject: str = ""
    """The evaluation set, source, layer or step that it is about; "" where there is only one."""
    is_over: bool = False
    """True where it no longer holds at the end of the history."""

    @property
    def title(self) -> str:
        """The name and the subject in words."""
        words = self.name.replace("warmup", "warm-up").replace("_", " ").capitalize()
        return f"{words} ({self.subject})" if self.subject else words

    @property
    def key(self) -> tuple[str, str]:
        """The name and the subject; they tell whether it is the same finding at another time."""
        return self.name, self.subject


def worst(findings: list[Finding]) -> Severity | None:
    """Returns the highest severity among the findings that hold; None without any."""
    holding = [SEVERITIES.index(f.severity) for f in findings if not f.is_over]
    return SEVERITIES[max(holding)] if holding else None
