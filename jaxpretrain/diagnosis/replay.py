"""The findings that a watch would have made on the way, for a report about the whole run."""

from dataclasses import replace

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.diagnosis.rules import BY_NAME, diagnose

NUM_LOOKS = 60
"""The number of times at which the run is judged."""
ROWS = 8192
"""The number of rows of a series that are judged, at most."""


def findings_over_time(history: History, plan: Plan) -> list[Finding]:
    """Returns the findings at the end of a history, and those of earlier times, which are over.

    Notes of earlier times are left out: they were about the state of that time.
    """
    found = {finding.key: finding for finding in diagnose(history, plan)}
    past: dict[tuple[str, str], Finding] = {}
    thinned = _thinned(history)
    for step in np.unique(np.linspace(0, history.step, NUM_LOOKS + 1).astype(int))[1:-1]:
        for finding in diagnose(thinned.until(int(step)), plan):
            is_note = finding.severity == "info"
            if not is_note and BY_NAME[finding.name].is_replayed and finding.key not in found:
                first = past.get(finding.key, finding).first
                past[finding.key] = replace(finding, first=min(first, finding.first), is_over=True)
    return sorted([*found.values(), *past.values()], key=lambda finding: finding.first)


def _thinned(history: History) -> History:
    """Returns every n-th row of long series, and the last."""
    return History(
        {
            name: series[(len(series) - 1) % stride :: stride]
            for name, series in history.series.items()
            if (stride := -(-len(series) // ROWS))
        }
    )
