"""Points from the folders of finished runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError, closest, nearest
from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.history import History, read_history
from jaxpretrain.diagnosis.metric_names import lower_is_better
from jaxpretrain.diagnosis.predicted import FILE as PREDICTION
from jaxpretrain.diagnosis.predicted import (
    TRAINING,
    about_another,
    final_value,
    is_late,
    read_prediction,
)
from jaxpretrain.laws.points import Points, require_numbers
from jaxpretrain.laws.sizes import size_of
from jaxpretrain.train.workdir import read_experiment

COOLED = 0.1
"""The part of the steps below the peak of the learning rate that a run needs to be cooled."""
WARM = 0.5
"""The learning rate at the end, relative to its peak, above which a run was not cooled."""
_PEAK = 0.99  # part of the peak from which a learning rate counts as the peak


@dataclass(frozen=True)
class _Finished:
    name: str
    parameters: int
    tokens: int
    history: History
    steps: int


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders of runs in some folders and anywhere below them, each once.

    Raises:
      InputError: a folder does not exist, or holds no run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        below = sorted(file.parent for file in folder.rglob("metrics.jsonl"))
        if not below:
            hint = "is a file; a table is given as --points=FILE" if folder.is_file() else ""
            raise InputError(f"{folder}: {hint or 'holds no run; a run has a metrics.jsonl'}")
        for run in below:
            found.setdefault(run.resolve(), run)
    return [*found.values()]


def points_in(
    folders: Sequence[Path], metric: str | None, last: int = 1, predicted: Path | None = None
) -> Points:
    """Returns the points of the finished runs in some folders; others are left out and named.

    Runs that were predicted are no points; see `scores_in`.

    Args:
      folders: the folders of runs, or folders that hold them.
      metric: the name of the loss; None: the first held-out loss that all runs have, otherwise the
        training loss.
      last: the number of last values whose mean is taken.
      predicted: the folder of the run that is being predicted, which is no point.

    Raises:
      InputError: no run is finished, or one has no such metric, or fewer values of it.
    """
    runs, warnings = [], []
    for folder in find_runs(folders):
        is_predicted = predicted is not None and folder.resolve() == predicted.resolve()
        if is_predicted or (folder / PREDICTION).exists():
            continue  # it is scored, and no point that the next prediction follows from
        experiment, history = read_experiment(folder), read_history(folder / "metrics.jsonl")
        steps = experiment.timeline.num_steps
        if history.step < steps:
            warnings.append(f"{folder}: not finished ({history.step:,} of {steps:,}); left out")
            continue
        size = size_of(experiment)
        runs.append(_Finished(str(folder), size.parameters, size.tokens, history, steps))
        if doubt := _cooling(history):
            warnings.append(f"{folder}: {doubt}")
    if not runs:
        none = "they were predicted; name the folder of the runs that a law is fitted to as well"
        raise InputError(f"no run is a finished point: {'; '.join(warnings[:3]) or none}")
    name = _metric(runs, metric)
    if last > 1 and name == TRAINING:
        raise InputError(f"--last={last}: {name} is the mean over the last tenth of the steps")
    losses = []
    for run in runs:
        loss = final_value(run.history, name, run.steps, last)
        if loss is None:
            raise InputError(
                f"{run.name}: has no finite {name} at its end; name another --metric, or the "
                "folders of the other runs"
            )
        if last > 1 and len(run.history[name].finite) < last:
            number = len(run.history[name].finite)
            raise InputError(f"--last={last}: {run.name} has {number} values of {name}")
        losses.append(loss)
    points = Points(
        np.array([run.parameters for run in runs], float),
        np.array([run.tokens for run in runs], float),
        np.array(losses),
        tuple(run.name for run in runs),
        name,
        _tasks(runs, last),
        tuple(warnings),
    )
    require_numbers(points)
    return points


def scores_in(folders: Sequence[Path]) -> tuple[list[Document], list[str]]:
    """Returns the predictions in the folders of runs, each with what came; and why some have none.

    A run of another size than the one that was predicted has no score. Each score has `name`,
    `loss`, `low`, `high`, `measured`, `error` (relative), `is_inside` (true where the interval
    holds what came) and `hindcast` (true also where the file is younger than the run).
    """
    found, unscored = [], []
    for folder in find_runs(folders):
        if (said := read_prediction(folder)) is None:
            continue
        history, experiment = read_history(folder / "metrics.jsonl"), read_experiment(folder)
        size, steps = size_of(experiment), experiment.timeline.num_steps
        measured = final_value(history, said.metric, steps, said.last)
        if other := about_another(said, size.parameters, size.tokens):
            unscored.append(f"{folder}: no score, because {other}")
        elif history.step < steps:
            unscored.append(f"{folder}: no score yet ({history.step:,} of {steps:,} steps)")
        elif measured is None:
            near = closest(said.metric, history.names("eval/"))
            hint = f"; it has {near}" * (near is not None)
            unscored.append(f"{folder}: no score, because it has no {said.metric} at its end{hint}")
        else:
            score = {"measured": measured, "error": said.loss / measured - 1}
            score["is_inside"] = said.low <= measured <= said.high
            ends = {"loss": said.loss, "low": said.low, "high": said.high}
            found.append({"name": str(folder), **ends, **score, "hindcast": is_late(said, history)})
    return found, unscored


def _metric(runs: Sequence[_Finished], wanted: str | None) -> str:
    known = [set(run.history.names()) for run in runs]
    shared = [name for name in runs[0].history.names() if all(name in names for names in known)]
    losses = [name for name in shared if name.startswith("eval/") and name.endswith("/loss")]
    if wanted is None:
        return next(iter(losses), TRAINING)
    if wanted not in shared:
        hint = nearest(wanted, shared) or f" They share {', '.join([*losses, TRAINING])}."
        raise InputError(f"--metric={wanted}: not all runs have it.{hint}")
    if not lower_is_better(wanted):
        raise InputError(f"--metric={wanted}: a law is about a loss, which falls")
    return wanted


def _tasks(runs: Sequence[_Finished], last: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the bits per byte and the accuracy of each task that all runs have at their ends."""
    found = {}
    for name in runs[0].history.names("eval/", "/bpb"):
        task = name.removeprefix("eval/").removesuffix("/bpb")
        share = next((f"eval/{task}/{m}" for m in ("len_norm", "acc") if _has(runs, task, m)), "")
        columns = [
            [final_value(run.history, metric, run.steps, last) for run in runs]
            for metric in (name, share)
        ]
        if share and not any(value is None for column in columns for value in column):
            found[share.removeprefix("eval/")] = (
                np.array(columns[0], float),
                np.array(columns[1], float),
            )
    return found


def _has(runs: Sequence[_Finished], task: str, metric: str) -> bool:
    return all(len(run.history[f"eval/{task}/{metric}"]) for run in runs)


def _cooling(history: History) -> str:
    """Returns why a run's end may be no end: its learning rate has hardly fallen; "" where not."""
    rates = history["train/learning_rate"].finite
    if not len(rates) or rates.values.max() <= 0:
        return ""
    peak = rates.values.max()
    if rates.values[-1] > WARM * peak:
        return f"not cooled: its learning rate ends at {rates.values[-1] / peak:.0%} of the peak"
    since = rates.steps[np.flatnonzero(rates.values >= _PEAK * peak)[-1]]
    part = 1 - since / history.step
    return f"cooled in {part:.0%} of its steps, too briefly" if part < COOLED else ""
