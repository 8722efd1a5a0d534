"""Findings where a session begins: the run goes on in another way than it had stopped."""

from collections.abc import Iterator

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.statistics import MEDIAN_ERROR, noise
from jaxpretrain.display.wording import format_number

ROWS = 16  # number of reports on each side that are compared
JUMP_SIGMAS = 6.0  # least jump of the loss in standard errors of its median
JUMP_RISE = 0.03  # least jump of the loss relative to the loss before
CHANGE = 0.02  # least relative change of a learning rate or a batch
SMALLEST_RATE = 1e-3  # least change of the learning rate relative to the highest one

Jump = tuple[str, dict[str, float]]
"""A jump in words, and the numbers of it by name."""


def discontinuity(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds jumps of the loss, the learning rate or the batch where a session begins."""
    for step in sorted(set(history.resumed)):
        jumps = [judge(history, plan, step) for judge in (_loss, _rate, _batch)]
        if found := [jump for jump in jumps if jump is not None]:
            yield _finding(history, step, found)


def _finding(history: History, step: int, jumps: list[Jump]) -> Finding:
    texts = "; ".join(text for text, _ in jumps)
    since = history["train/loss"].between(step + 1, history.step)
    return Finding(
        "resume_discontinuity",
        step,
        int(since.steps[min(len(since), ROWS) - 1]),
        f"The run did not go on at step {step:,} as it had stopped: {texts}.",
        f"If you did not mean that, go back to the checkpoint of step {step:,} and compare the "
        "configs: at its start, a resumed run names each change.",
        {name: value for _, numbers in jumps for name, value in numbers.items()},
        subject=f"step {step:,}",
        is_over=len(since) > 4 * ROWS,
    )


def _sides(history: History, series: Series, step: int) -> tuple[Series, Series]:
    """Returns the reports just before and just after `step`, where two sessions meet."""
    begun = max((other for other in history.resumed if other < step), default=0)
    ended = min((other for other in history.resumed if other > step), default=np.inf)
    return series.between(begun + 1, step)[-ROWS:], series.between(step + 1, ended)[:ROWS]


def _loss(history: History, plan: TrainingPlan, step: int) -> Jump | None:
    before, after = _sides(history, history.loss, step)
    if min(len(before), len(after)) < ROWS // 2:
        return None
    old, new = float(np.median(before.values)), float(np.median(after.values))
    error = MEDIAN_ERROR * noise(before.values) * np.sqrt(1 / len(before) + 1 / len(after))
    if new - old < max(JUMP_SIGMAS * error, JUMP_RISE * abs(old)):
        return None
    text = f"the loss rises from {format_number(old)} to {format_number(new)}"
    return text, {"loss_jump": new - old}


def _rate(history: History, plan: TrainingPlan, step: int) -> Jump | None:
    rates = history["train/learning_rate"].finite
    before, after = _sides(history, rates, step)
    if not len(before) or not len(after):
        return None
    old, old_change, was_planned = _edge(before[::-1], plan, step)
    new, new_change, is_planned = _edge(after, plan, step + 1)
    if was_planned and is_planned:
        return None
    # The change of one step on each side is no jump.
    natural = max(
        CHANGE * max(abs(old), abs(new)) + abs(old_change) + abs(new_change),
        SMALLEST_RATE * float(np.abs(rates.values).max()),
    )
    if abs(new - old) <= natural:
        return None
    text = f"the learning rate goes from {old:.3g} to {new:.3g}"
    return text, {"rate_before": old, "rate_after": new}


def _edge(rates: Series, plan: TrainingPlan, step: int) -> tuple[float, float, bool]:
    """Returns the learning rate at a step, its change in one step, and whether it is the planned.

    The step lies next to `rates`, of which the nearest comes first. The rate is exact where it is
    the planned one. Otherwise it is extrapolated from the two nearest reports, because an earlier
    session may have followed another plan.
    """
    near, known = int(rates.steps[0]), float(rates.values[0])
    there, rate, following = map(float, plan.learning_rate(np.array([near, step, step + 1])))
    if abs(known - there) <= CHANGE * max(abs(known), abs(there)):
        return rate, following - rate, True
    if len(rates) == 1:
        return known, 0.0, False
    change = float((rates.values[1] - known) / (rates.steps[1] - near))
    return known + change * (step - near), change, False


def _batch(history: History, plan: TrainingPlan, step: int) -> Jump | None:
    before, after = _sides(history, history["train/weight"].finite, step)
    if not len(before) or not len(after):
        return None
    if any(before.steps[0] <= end < after.steps[-1] for end in plan.batch_changes):
        return None  # a stage ends among these reports
    old, new = float(np.median(before.values)), float(np.median(after.values))
    # With masks, batches differ among themselves.
    usual = max(JUMP_SIGMAS * noise(before.values), float(np.ptp(before.values)))
    if old <= 0 or abs(new - old) <= max(CHANGE * old, usual):
        return None
    text = f"a step has {new:,.0f} predicted {history.unit} where it had {old:,.0f}"
    return text, {"batch_factor": new / old}
