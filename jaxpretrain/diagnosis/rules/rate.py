"""Findings about the learning rate: the end of the warm-up, rates that are too high or too low."""

from collections.abc import Iterator

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.remaining import estimate
from jaxpretrain.diagnosis.rules.layers import update_ratios
from jaxpretrain.diagnosis.statistics import BLOCK, levels, trend
from jaxpretrain.display.wording import format_number, format_seconds

FLATTENING_LASTS = 5  # multiple of the warm-up's length until which its end explains a flat curve
FLATTENING_FRACTION = 0.05  # part of the run for which that explains a flat curve, at most
FEWEST_STEPS = 300  # fewest steps of a run in which the end of the warm-up is worth a note
TOO_HIGH_RISE = 0.01  # least rise of the loss during the warm-up relative to its lowest level
TOO_HIGH_SIGMAS = 6.0  # least rise of the loss during the warm-up in standard errors of a level
SMALLEST_MOVE = 0.1  # relative move of the weights over a whole run below which it is too small
SPENT_RATE = 0.01  # learning rate relative to its peak below which it is spent
SPENT_LEFT = 0.1  # least part of the run that must still come when the learning rate is spent
RATE_TOLERANCE = 0.01  # largest relative difference of the learning rate to the planned one
CLIPPED_SHARE = 0.9  # least share of clipped gradients
CLIPPED_FAR = 2.0  # ratio of a typical norm to the limit that changes the gradients much


def warmup_ended(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds that the learning rate has just reached its peak, where losses flatten."""
    end, step = plan.warmup_end, history.step
    lasts = min(FLATTENING_LASTS * end, end + FLATTENING_FRACTION * plan.total_steps)
    if not end <= step < lasts or not end or plan.total_steps < FEWEST_STEPS:
        return
    left = 1 - step / plan.total_steps
    time = estimate(history, plan.total_steps)
    factor = plan.total_steps / step if time is None else time.factor
    evidence = {"warmup_end": end, "left": left, "factor": factor}
    reading = (
        f"The warm-up ended at step {end:,}, {end / plan.total_steps:.1%} of the run: from here on "
        f"the loss falls more slowly, which is normal.{_falls(history, end, evidence)}"
    )
    if time is not None:
        reading += (
            f" At this pace the whole run takes {factor:.1f} times the time so far "
            f"({format_seconds(time.spent)}): {format_seconds(time.total)}."
        )
    yield Finding(
        "warmup_ended",
        end,
        step,
        reading,
        "Nothing. Leave the learning rate to its schedule, and judge by validation sets and "
        "tasks too.",
        evidence,
        severity="info",
    )


def _falls(history: History, end: int, evidence: dict[str, float]) -> str:
    """Returns a sentence about the fall of the loss in the last half of the warm-up and since.

    The numbers go into the evidence too. The sentence is "" where too little is known.
    """
    speeds = []
    for first, last in ((end / 2, end), (end, history.step)):
        loss = history.loss.between(first, last)
        line = trend(loss.steps, loss.values) if len(loss) >= 8 else None
        if line is None:
            return ""
        speeds.append(-line.change / (loss.steps[-1] - loss.steps[0]) * 1000)
    evidence |= {"fall_before": speeds[0], "fall_since": speeds[1]}
    return (
        f" Before, the loss changed by {-speeds[0]:+.3g} in 1,000 steps, since then by "
        f"{-speeds[1]:+.3g}."
    )


def too_high(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a loss that was lowest during the warm-up and has risen with the learning rate."""
    loss = history.loss
    level = levels(loss.values, max(8, min(BLOCK, len(loss) // 8)))
    end = plan.warmup_end
    if len(level.medians) < 3 or not end:
        return
    best = int(np.argmin(level.medians))
    at = int(loss.steps[level.rows[best] + level.size // 2])
    lowest, now = level.medians[best], level.medians[-1]
    rise = now - lowest
    if at >= end or best >= len(level.medians) - 2:
        return
    if rise < TOO_HIGH_RISE * abs(lowest) or rise < TOO_HIGH_SIGMAS * level.error:
        return
    good, now_rate = plan.learning_rate(np.array([at, history.step]))
    evidence = {"lowest": lowest, "at": at, "now": now, "good_rate": good, "rate": now_rate}
    norms = history["train/grad_norm"].finite
    grown = ""
    if len(before := norms.between(at - 2 * level.size, at)) and len(norms):
        evidence["grad_norm_growth"] = float(
            np.median(norms.values[-level.size :]) / max(np.median(before.values), 1e-30)
        )
        grown = f" The gradient norm is {evidence['grad_norm_growth']:.2g} times what it was then."
    if (ratios := update_ratios(history)) is not None:
        evidence["update_ratio"] = ratios[1]
        grown += f" An update moves a layer by up to {ratios[1]:.1%} of its weights."
    yield Finding(
        "learning_rate_too_high",
        at,
        history.step,
        f"The loss was lowest at step {at:,}, in the warm-up at a learning rate of {good:.2g}: "
        f"{format_number(lowest)}. Since then it has risen to {format_number(now)} with the "
        f"learning rate.{grown}",
        f"Start again with a peak of {good:.1g} or less, or with a longer warm-up.",
        evidence,
    )


def too_low(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds updates that are too small to change the weights much within the run."""
    rates = history["train/learning_rate"].finite
    updates, norms = (history[f"train/{n}"].finite for n in ("update_norm", "param_norm"))
    if len(rates) < BLOCK or not len(rates) == len(updates) == len(norms):
        return
    if history.step < plan.warmup_end or not np.any(rates.values > 0):
        return
    moving = (rates.values > 0) & (norms.values > 0) & (updates.values > 0)
    if not np.any(moving):
        return
    ratio = updates.values[moving] / norms.values[moving]
    per_rate = float(np.median(ratio / rates.values[moving]))
    grid = np.linspace(1, plan.total_steps, 1000)
    move = per_rate * float(np.abs(plan.learning_rate(grid)).mean()) * plan.total_steps
    if move > SMALLEST_MOVE:
        return
    evidence, layers = {"update_ratio": float(np.median(ratio)), "move": move}, ""
    if (of_layers := update_ratios(history)) is not None:
        evidence |= {"lowest_layer": of_layers[0], "highest_layer": of_layers[1]}
        layers = f", from {of_layers[0]:.1e} to {of_layers[1]:.1e} by layer"
    yield Finding(
        "learning_rate_too_low",
        max(plan.warmup_end, int(rates.steps[0])),
        history.step,
        f"An update is {np.median(ratio):.1e} of the weights' norm{layers}. If "
        "all updates of the run pointed the same way, they would move the weights by "
        f"{move:.1%} of their norm.",
        "Raise the peak learning rate, tenfold at first; healthy runs move their weights by "
        "several times their norm.",
        evidence,
        signal="train/update_norm",
    )


def spent_early(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a learning rate that is almost 0 long before the run ends."""
    step, total = history.step, plan.total_steps
    if total - step < SPENT_LEFT * total:
        return
    grid = np.arange(1, 1001) / 1000 * total
    rates = plan.learning_rate(grid)
    low = grid[(grid > grid[np.argmax(rates)]) & (rates < SPENT_RATE * rates.max())]
    if not len(low) or step < low[0]:
        return
    yield Finding(
        "learning_rate_spent",
        int(low[0]),
        step,
        f"The learning rate has been below {SPENT_RATE:.0%} of its peak since step "
        f"{int(low[0]):,}, and {1 - step / total:.0%} of the run is still to come: those steps "
        "will change little.",
        "Stop here, or go on with a schedule whose horizon is the end of the run.",
        {"since": float(low[0]), "left": 1 - step / total},
        signal="train/learning_rate",
    )


def off_schedule(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a learning rate that is not the one of the config."""
    begun = max(history.resumed, default=0)
    rates = history["train/learning_rate"].finite.between(begun + 1, plan.total_steps)
    if not len(rates):
        return
    planned = plan.learning_rate(rates.steps)
    scale = float(np.abs(plan.learning_rate(np.linspace(1, plan.total_steps, 1000))).max())
    usual = np.maximum(np.abs(planned), 0.01 * scale)
    off = np.abs(rates.values - planned) > RATE_TOLERANCE * usual
    if not off[-1]:
        return
    first = int(rates.steps[np.flatnonzero(~off)[-1] + 1]) if not off.all() else rates.steps[0]
    yield Finding(
        "learning_rate_off_schedule",
        int(first),
        int(rates.steps[-1]),
        f"Step {int(rates.steps[-1]):,} used a learning rate of {rates.values[-1]:.3g}; the "
        f"schedule of the config says {planned[-1]:.3g}.",
        "Find out which of the two is meant before going on; a resume with another duration "
        "moves every schedule that ends with the run.",
        {"rate": float(rates.values[-1]), "planned": float(planned[-1])},
        signal="train/learning_rate",
    )


def clipping(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds that almost every gradient is scaled down."""
    norms = history["train/grad_norm"].finite
    late = norms[-2 * BLOCK :]
    if plan.clip_norm is None or len(late) < BLOCK or late.steps[0] < plan.warmup_end:
        return
    clipped = late.values > plan.clip_norm
    if clipped.mean() < CLIPPED_SHARE:
        return
    typical = float(np.median(late.values))
    yield Finding(
        "always_clipping",
        int(late.steps[0]),
        int(late.steps[-1]),
        f"{clipped.mean():.0%} of the last {len(late)} reported gradients were clipped: their "
        f"norm is typically {typical:.3g}, the limit {plan.clip_norm:g}. Clipping then no "
        "longer catches outliers, it makes every gradient equally long.",
        f"Raise optim.clip_norm to about {format_number(2 * typical, 2)}, or lower the "
        "learning rate if the norm has grown since the warm-up.",
        {"share": float(clipped.mean()), "norm": typical, "limit": plan.clip_norm},
        signal="train/grad_norm",
        severity="warning" if typical > CLIPPED_FAR * plan.clip_norm else "info",
    )
