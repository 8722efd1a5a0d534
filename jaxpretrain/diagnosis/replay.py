"""What a watch would have found on the way, for those who look at a run afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.diagnosis.rules import diagnose

NUM_LOOKS = 60
ROWS = 8192
NOT_REPLAYED = ("spike", "learning_rate_off_schedule")
"""Spikes need all rows, and those of the past are among the findings of the end. Learning rates of
the past may have followed another plan."""


def findings_over_time(history: History, plan: Plan) -> list[Finding]:
    """The findings at the end of `history`, and those of earlier times, which are over.

    Notes of earlier times are left out: they told how things were then.
    """
    found = {finding.key: finding for finding in diagnose(history, plan)}
    past: dict[tuple[str, str], Finding] = {}
    thinned = _thinned(history)
    for step in np.unique(np.linspace(0, history.step, NUM_LOOKS + 1).astype(int))[1:-1]:
        for finding in diagnose(thinned.until(int(step)), plan):
            is_note = finding.severity == "info"
            if not is_note and finding.name not in NOT_REPLAYED and finding.key not in found:
                first = past.get(finding.key, finding).first
                past[finding.key] = replace(finding, first=min(first, finding.first), is_over=True)
    return sorted([*found.values(), *past.values()], key=lambda finding: finding.first)


def _thinned(history: History) -> History:
    """Every n-th row of long series, and the last."""
    return History(
        {
            name: series[(len(series) - 1) % stride :: stride]
            for name, series in history.series.items()
            if (stride := -(-len(series) // ROWS))
        }
    )
