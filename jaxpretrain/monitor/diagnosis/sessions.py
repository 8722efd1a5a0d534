"""Whether a run went on as it had stopped."""

from __future__ import annotations

import numpy as np

from jaxpretrain.monitor.findings import Finding
from jaxpretrain.monitor.history import History, Series
from jaxpretrain.monitor.plan import Plan
from jaxpretrain.monitor.statistics import noise

ROWS = 16
"""Reports on each side that are compared."""
JUMP_SIGMAS = 6.0
JUMP_RISE = 0.03
CHANGE = 0.02


def discontinuity(history: History, plan: Plan) -> list[Finding]:
    """The loss, the learning rate or the batch jumps where a session begins."""
    found = []
    for step in sorted(set(history.resumed)):
        jumps = [
            jump
            for judge in (_loss, _rate, _batch)
            if (jump := judge(history, plan, step)) is not None
        ]
        if jumps:
            texts, evidence = zip(*jumps, strict=True)
            found.append(_finding(history, step, texts, dict(e for one in evidence for e in one)))
    return found


def _finding(
    history: History, step: int, texts: tuple[str, ...], evidence: dict[str, float]
) -> Finding:
    since = history["train/loss"].between(step + 1, history.step)
    return Finding(
        "resume_discontinuity",
        "warning",
        step,
        int(since.steps[min(len(since), ROWS) - 1]),
        f"The run did not go on at step {step:,} as it had stopped: {'; '.join(texts)}.",
        "If that is not meant, go back to the checkpoint of that step and compare the configs: the "
        "terminal names each change of a resumed run.",
        evidence,
        subject=f"step {step:,}",
        is_over=len(since) > 4 * ROWS,
    )


def _sides(series: Series, step: int) -> tuple[Series, Series]:
    """The reports just before and just after."""
    return series.between(0, step)[-ROWS:], series.between(step + 1, np.inf)[:ROWS]


Jump = tuple[str, list[tuple[str, float]]]


def _loss(history: History, plan: Plan, step: int) -> Jump | None:
    before, after = _sides(history.loss, step)
    if min(len(before), len(after)) < ROWS // 2:
        return None
    old, new = float(np.median(before.values)), float(np.median(after.values))
    error = 1.2533 * noise(before.values) * np.sqrt(1 / len(before) + 1 / len(after))
    if new - old < max(JUMP_SIGMAS * error, JUMP_RISE * abs(old)):
        return None
    return f"the loss rises from {old:.3f} to {new:.3f}", [("loss_jump", new - old)]


def _rate(history: History, plan: Plan, step: int) -> Jump | None:
    before, after = _sides(history["train/learning_rate"].finite, step)
    if not len(before) or not len(after):
        return None
    planned = plan.learning_rate(np.array([before.steps[-1], after.steps[0]]))
    if min(*planned, before.values[-1]) <= 0:
        return None
    factor = (after.values[0] / before.values[-1]) / (planned[1] / planned[0])
    if abs(factor - 1) < CHANGE:
        return None
    text = f"the learning rate goes from {before.values[-1]:.3g} to {after.values[0]:.3g}"
    return text, [("rate_factor", float(factor))]


def _batch(history: History, plan: Plan, step: int) -> Jump | None:
    before, after = _sides(history["train/weight"].finite, step)
    if not len(before) or not len(after):
        return None
    old, new = float(np.median(before.values)), float(np.median(after.values))
    if old <= 0 or abs(new / old - 1) < CHANGE:
        return None
    text = f"a step has {new:,.0f} predicted {history.unit} where it had {old:,.0f}"
    return text, [("batch_factor", new / old)]
