"""Findings in the curve of the training loss: spikes, divergence, plateaus, skipped steps."""

from collections.abc import Iterator

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.metric_names import improvements
from jaxpretrain.diagnosis.statistics import BLOCK, MEDIAN_ERROR, SIGNIFICANT, levels, noise, trend
from jaxpretrain.display.wording import format_number

PLATEAU_FRACTION = 0.1  # part of the run that must pass without improvement
PLATEAU_IMPROVEMENT = 0.01  # relative fall of the loss over that part that would be an improvement
PLATEAU_CERTAINTY = 0.999  # probability with which it must be ruled out, as reports are many
PLATEAU_POWER = 4.0  # number of standard errors in such a fall; with fewer, noise hides it
PLATEAU_ROWS = 24  # fewest reports that are tested
PLATEAU_RATE = 0.1  # learning rate relative to its peak below which a loss flattens by design
SPIKE_SIGMAS = 8.0  # least height of a spike in standard deviations of the noise
SPIKE_RISE = 0.03  # least height of a spike relative to the level before it
SPIKE_WARNS = 3  # number of high reports in a row that makes a spike a warning
SPIKE_AROUND = 5  # number of steps around a spike that are worth a replay
MOST_SPIKES = 20  # number of spikes that are kept: the tallest
EMPTY_SHARE = 0.05  # least share of empty batches among the reported ones
EMPTY_ROWS = 4  # fewest empty batches
DIVERGENCE_RISE = 0.1  # least rise relative to the lowest level; smaller blocks need more
DIVERGENCE_SIGMAS = 6.0  # least rise in standard errors of a level
DIVERGENCE_BLOCKS = 6  # number of blocks into which a short curve is cut
DIVERGENCE_NOISE_ROWS = 8  # fewest reports that show how noisy the loss is
DIVERGENCE_FACTOR = 2.5  # ratio to the lowest level that is a divergence however noisy the loss is
DIVERGENCE_OVER = 0.05  # relative distance to the lowest level at which a loss has come back


def not_finite(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a last loss that is no number, in a batch that has something to predict."""
    loss = history["train/loss"]
    if not len(loss) or np.isfinite(loss.values[-1]):
        return
    skipped, weight = history["train/skipped"], history["train/weight"]
    if (len(skipped) and skipped.values[-1] == 1) or (len(weight) and weight.values[-1] == 0):
        return
    step = int(loss.steps[-1])
    known = history.loss.values
    before = f" It was {format_number(known[-1])} at the report before." if len(known) else ""
    yield Finding(
        "not_finite",
        step,
        step,
        f"The loss or the gradient of step {step:,} is no number.{before} The step was not saved.",
        "Go on from the last checkpoint. If it comes again at the same step, the batch is at "
        "fault: look at it, or leave such steps out with train.on_bad_step=skip. If it comes "
        "at another step, lower the peak learning rate or lengthen the warm-up.",
        {"step": step},
        severity="error",
    )


def skipped_steps(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds steps that changed no weights."""
    skipped = history["train/skipped"]
    steps = skipped.steps[skipped.values == 1]
    if not len(steps):
        return
    rows_since = int(np.sum(skipped.steps > steps[-1]))
    share = len(steps) / len(skipped)
    yield Finding(
        "skipped_steps",
        int(steps[0]),
        int(steps[-1]),
        f"{len(steps):,} reported steps changed no weights ({share:.2%}), the last of them "
        f"step {int(steps[-1]):,}.",
        "A few are what skipping is for. When they come often, look at their batches and at "
        "the learning rate.",
        {"skipped": len(steps), "share": share},
        signal="train/skipped",
        is_over=rows_since >= 2 * BLOCK,
    )


def empty_batches(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds steps whose batches have no token or image that counts."""
    weight = history["train/weight"].finite
    steps = weight.steps[weight.values == 0]
    share = len(steps) / max(len(weight), 1)
    if share < EMPTY_SHARE or len(steps) < EMPTY_ROWS:
        return
    yield Finding(
        "empty_batches",
        int(steps[0]),
        int(steps[-1]),
        f"Nothing counts in the batches of {len(steps):,} reported steps ({share:.0%}), which "
        "changed no weights.",
        "Look at the label mask and the instance filter; python -m jaxpretrain.show_batch "
        "shows what counts in a batch.",
        {"empty": len(steps), "share": share},
        signal="train/weight",
        severity="error" if share > 0.5 else "warning",
    )


def divergence(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a loss that has risen far above its lowest level and stays there.

    A level is the median of a block of reports; short runs have smaller blocks. Two blocks in a row
    must be high, so a spike is no divergence. A loss that was far above must come back near its
    lowest level. Logarithms are compared, because a loss that grows exponentially has no level.
    """
    loss = history.loss
    size = max(1, min(BLOCK, len(loss) // DIVERGENCE_BLOCKS))
    level = levels(np.log(np.maximum(loss.values, 1e-30)), size)
    if len(level.medians) < 3:
        return
    best = int(np.argmin(level.medians[:-2]))
    lowest, now = np.exp(level.medians[best]), np.exp(level.medians[-1])
    rise = float(level.medians[-2:].min() - level.medians[best])
    late = np.log(np.maximum(loss.values[-8 * size :], 1e-30))
    error = MEDIAN_ERROR * noise(late) / np.sqrt(size)
    least = max(np.log1p(DIVERGENCE_RISE * np.sqrt(BLOCK / size)), DIVERGENCE_SIGMAS * error)
    is_high = rise >= (least if len(loss) >= DIVERGENCE_NOISE_ROWS else np.log(DIVERGENCE_FACTOR))
    # A loss that rose at once had its lowest level in the first report.
    lowest_before, since = float(np.log(max(loss.values[0], 1e-30))), level.medians
    if lowest_before > level.medians[best]:
        lowest_before, since = float(level.medians[best]), level.medians[best:]
    highest = _highest(since, 2 if size > 1 else 3)
    was_high = highest - lowest_before >= np.log(DIVERGENCE_FACTOR)
    above = float(level.medians[-2:].min()) - lowest_before
    if not is_high and not (was_high and above >= np.log1p(DIVERGENCE_OVER)):
        return
    course = f"to {format_number(now)} and stays there"
    if not is_high:
        lowest, top = np.exp(lowest_before), np.exp(highest)
        course = f"to {format_number(top)} and has come down to {format_number(now)} only"
    first = int(loss.steps[level.rows[best] + level.size - 1])
    yield Finding(
        "divergence",
        first,
        int(loss.steps[-1]),
        f"The loss has risen from {format_number(lowest)} around step {first:,} {course}.",
        "Stop, and go on from a checkpoint before the rise with a lower peak learning rate, a "
        "longer warm-up or stronger clipping. Where the data changed at that step, by plan, "
        "the two levels do not compare and nothing is wrong.",
        {"lowest": lowest, "now": now, "factor": now / lowest, "relative_error": error},
        severity="error",
    )


def _highest(medians: np.ndarray, num_blocks: int) -> float:
    """Returns the highest level that a number of blocks in a row reach."""
    if len(medians) < num_blocks:
        return -np.inf
    return float(np.lib.stride_tricks.sliding_window_view(medians, num_blocks).min(axis=1).max())


def spikes(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds losses far above the level of the 64 reports before them."""
    loss = history.loss
    level = levels(loss.values)
    if len(level.medians) < 3:
        return
    rows = np.arange(level.rows[2], len(loss))
    block = (rows - level.rows[0]) // level.size
    # The lower of two blocks is the level before: a spike in one of them must not hide others.
    before = np.minimum(level.medians[block - 1], level.medians[block - 2])
    sigma = np.maximum(level.noises[block - 1], level.noises[block - 2])
    rise = loss.values[rows] - before
    high = rise > np.maximum(SPIKE_SIGMAS * sigma, SPIKE_RISE * np.abs(before))
    found = [
        _spike(history, rows[part], float(before[part[0]]), float(rise[part].max()))
        for part in _runs(high)
    ]
    tallest = sorted(found, key=lambda spike: -spike.evidence["rise"])[:MOST_SPIKES]
    yield from sorted(tallest, key=lambda spike: spike.first)


def _spike(history: History, rows: np.ndarray, before: float, rise: float) -> Finding:
    loss = history.loss
    first, last = int(loss.steps[rows[0]]), int(loss.steps[rows[-1]])
    is_over = rows[-1] < len(loss) - 1
    rows_high = int(rows[-1] - rows[0] + 1)
    back = f"It was back after {last - first + 1:,} steps." if is_over else "It has not come back."
    steps = f"{max(first - SPIKE_AROUND, 1)}-{min(last + SPIKE_AROUND, history.step)}"
    see = f" jaxpretrain replay --workdir=DIR --steps={steps} shows what is in it."
    return Finding(
        "spike",
        first,
        last,
        f"The loss rose from {format_number(before)} to {format_number(before + rise)} at step "
        f"{first:,}. {back}",
        "Nothing." + see
        if is_over
        else "Nothing yet: most spikes recover by themselves. If it stays, go on from a checkpoint "
        "before it, with other data or a lower learning rate." + see,
        {"before": before, "rise": rise, "reports": rows_high},
        subject=f"step {first:,}",
        is_over=is_over,
        severity="warning" if rows_high >= SPIKE_WARNS and not is_over else "info",
    )


def plateau(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds a tenth of the run in which no signal improves although the learning rate is high."""
    last = history.step
    first = last - PLATEAU_FRACTION * plan.total_steps
    rate, peak = plan.learning_rate(np.array([max(last, 1), max(plan.warmup_end, 1)]))
    if first < plan.warmup_end or rate < PLATEAU_RATE * peak:
        return
    loss = history.loss.between(first, last)
    if len(loss) < PLATEAU_ROWS:
        return
    fall = trend(loss.steps, loss.values)
    bound = PLATEAU_IMPROVEMENT * abs(float(np.mean(loss.values)))
    if fall is None or fall.error > bound / PLATEAU_POWER:
        return
    if fall.falls < SIGNIFICANT or fall.below(-bound) < PLATEAU_CERTAINTY:
        return
    judged = improvements(history, first)
    if any(probability < SIGNIFICANT for probability in judged.values()):
        return
    others = f", and none of {len(judged)} evaluation curves improves" if judged else ""
    yield Finding(
        "plateau",
        int(loss.steps[0]),
        last,
        f"The loss has not fallen over {PLATEAU_FRACTION:.0%} of the run: its trend from step "
        f"{int(loss.steps[0]):,} on is {fall.change:+.4f} ± {fall.error:.4f} (a fall: p = "
        f"{fall.falls:.2f}){others}.",
        "Look at samples and at the data first: a plateau this long at this learning rate "
        "means that there is nothing more to learn from the data, that the labels are noise, "
        "or that the weights do not move. Compare with a run at a third of the learning rate.",
        {"change": fall.change, "error": fall.error, "p_fall": fall.falls, "others": len(judged)},
    )


def _runs(high: np.ndarray) -> list[np.ndarray]:
    """Returns the indices of true values in groups, whose gaps are at most 4."""
    indices = np.flatnonzero(high)
    return np.split(indices, np.flatnonzero(np.diff(indices) > 4) + 1) if len(indices) else []
