"""Findings in evaluations: overfitting, tasks that do not follow the loss, noise."""

from collections.abc import Iterator

import numpy as np

from jaxpretrain.diagnosis import metric_names
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.statistics import SIGNIFICANT, noise, trend
from jaxpretrain.display.wording import format_number

OVERFITTING_RISE = 0.01  # least rise of a validation loss relative to its lowest value
OVERFITTING_POINTS = 2  # number of last evaluations that must all show the rise
OVERFITTING_SIGMAS = 3.0  # least rise in standard deviations of the noise of the validation loss
MOST_WITHIN = 2.0  # number of standard errors up to which a difference is noise
DISAGREEMENT_FALL = 0.01  # least relative fall of the validation losses that tasks should follow
DISAGREEMENT_POINTS = 3  # fewest evaluations that show such a fall
WORSE = -3.0  # change of the tasks, in standard errors, below which they have got worse


def overfitting(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds validation losses that rise while the training loss falls."""
    for name in metric_names.evaluation_sets(history):
        curve = history[f"eval/{name}/loss"].finite
        if len(curve) < OVERFITTING_POINTS + 1:
            continue
        best = int(np.argmin(curve.values))
        later = curve.values[best + 1 :] - curve.values[best]
        chance = OVERFITTING_SIGMAS * noise(curve.values[len(curve) // 2 :])
        error = max(chance, OVERFITTING_RISE * curve.values[best])
        if len(later) < OVERFITTING_POINTS or np.any(later[-OVERFITTING_POINTS:] < error):
            continue
        since = int(curve.steps[best])
        train = history.loss.between(since, history.step)
        line = trend(train.steps, train.values)
        if line is None or line.falls > SIGNIFICANT:
            continue
        few = max(len(train) // 8, 1)
        if np.median(train.values[-few:]) >= train.values[:few].min():
            continue  # it has only come down from a rise of its own
        yield _overfitting(history, name, curve, best, line.change)


def _overfitting(history: History, name: str, curve: Series, best: int, fall: float) -> Finding:
    since, rise = int(curve.steps[best]), float(curve.values[-1] - curve.values[best])
    train = float(np.median(history.loss.values[-16:]))
    return Finding(
        "overfitting",
        since,
        int(curve.steps[-1]),
        f"The loss on {name} was lowest at step {since:,} ({format_number(curve.values[best])}) "
        f"and has risen by {format_number(rise, 3)} since, while the training loss fell by "
        f"{format_number(-fall, 3)} to {format_number(train)}.",
        f"The weights of step {since:,} are the better ones. The training data repeats, within it "
        "or by epochs: use more data, fewer steps, or more weight decay.",
        {"best": float(curve.values[best]), "rise": rise, "train_fall": -fall, "train": train},
        signal=f"eval/{name}/loss",
        subject=name,
    )


def disagreement(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds validation losses that fall while the tasks do not improve."""
    first = max(plan.warmup_end, history.step / 2)
    sets = [
        history[f"eval/{n}/loss"].finite.between(first, history.step)
        for n in metric_names.evaluation_sets(history)
    ]
    falls = [1 - s.values[-1] / s.values[0] for s in sets if len(s) >= DISAGREEMENT_POINTS]
    moves = _moves(history, first)
    if not falls or not moves or np.mean(falls) < DISAGREEMENT_FALL:
        return
    scores = [gain / error for gain, error in moves.values()]
    together = float(np.sum(scores) / np.sqrt(len(scores)))
    if together > MOST_WITHIN:
        return
    gets_worse = together < WORSE
    if not gets_worse and history.unit == "images":  # a probe of images sees only a few
        return
    visible = float(np.mean([MOST_WITHIN * error for _, error in moves.values()]))
    state = "got worse" if gets_worse else "did not move"
    yield Finding(
        "disagreement",
        int(first),
        history.step,
        f"Since step {int(first):,} validation losses fell by {np.mean(falls):.1%} while the "
        f"task metrics {state}: {together:+.1f} standard errors, {len(moves)} together. "
        f"Changes below {format_number(visible, 3)} on average cannot be told from noise.",
        "Look at what the tasks ask, and at what the training data has changed to."
        if gets_worse
        else "Nothing yet: tasks follow late, and small ones are noisy. The bits per byte of "
        "the tasks' answers show progress earlier.",
        {"fall": float(np.mean(falls)), "standard_errors": together, "visible": visible},
        signal=next(iter(moves)),
        severity="warning" if gets_worse else "info",
    )


def within_noise(history: History, plan: TrainingPlan) -> Iterator[Finding]:
    """Finds that the last two evaluations of the tasks differ by no more than chance."""
    moves = _moves(history, points=2)
    if not moves:
        return
    scores = np.array([gain / error for gain, error in moves.values()])
    if np.any(np.abs(scores) > MOST_WITHIN):
        return
    curve = history[next(iter(moves))].finite
    error = float(np.mean([error for _, error in moves.values()]))
    yield Finding(
        "evaluation_within_noise",
        int(curve.steps[-2]),
        int(curve.steps[-1]),
        f"Between the last two evaluations no task metric has moved by more than "
        f"{MOST_WITHIN:g} standard errors, on average "
        f"{format_number(MOST_WITHIN * error, 3)}, which is within chance.",
        "Nothing: do not read anything into these differences.",
        {"largest": float(np.abs(scores).max()), "visible": MOST_WITHIN * error},
        signal=next(iter(moves)),
        severity="info",
    )


def _moves(history: History, first: float = 0.0, points: int = 0) -> dict[str, tuple[float, float]]:
    """Returns (gain, standard error) of each task metric since a step, over its last `points`."""
    moves = {}
    for name in metric_names.task_metric_names(history):
        curve, errors = history[name].finite, history[metric_names.standard_error_name(name)].finite
        curve, errors = (s.between(first, history.step)[-points:] for s in (curve, errors))
        if len(curve) < 2 or len(curve) != len(errors) or not np.all(errors.values > 0):
            continue
        gain = curve.values[-1] - curve.values[0]
        error = float(np.hypot(errors.values[0], errors.values[-1]))
        moves[name] = (float(-gain if metric_names.lower_is_better(name) else gain), error)
    return moves
