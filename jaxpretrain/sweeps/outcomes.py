"""The results of finished runs, and those by which an arm is judged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.history import read_history
from jaxpretrain.diagnosis.metric_names import (
    lower_is_better,
    standard_error_name,
    task_metric_names,
)
from jaxpretrain.diagnosis.predicted import TRAINING, final_value
from jaxpretrain.monitor.writers import ITEMS
from jaxpretrain.storage.jsonl import read_lines

Point = tuple[tuple[str, str], ...]
"""A value of each nuisance setting."""


@dataclass(frozen=True)
class Outcome:
    """The results of a run at its end."""

    values: Mapping[str, float]
    """The metrics by name; those that are not finite are left out."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """The standard errors of metrics of tasks, by the names of the metrics."""
    items: Mapping[str, Sequence[tuple[str, bool]]] = field(default_factory=dict)
    """The items of a metric that is a share of right answers: name, and true where it is right."""


@dataclass(frozen=True)
class JudgedRuns:
    """The runs of an arm that are compared."""

    runs: Mapping[int, Outcome]
    """The finished runs by their seeds; with nuisance settings, those that did not choose them."""
    tuned: Point = ()
    """The best values of the nuisance settings."""
    warning: str = ""
    """The reason to doubt these values."""


def read_outcome(folder: Path) -> Outcome:
    """Returns the results of a finished run.

    Raises:
      InputError: the folder has no metrics, or a file that cannot be read.
    """
    history = read_history(folder / "metrics.jsonl")
    late = final_value(history, TRAINING, history.step)
    values = {} if late is None else {TRAINING: late}
    tasks = task_metric_names(history)
    for name in (*history.names("eval/", "/loss"), *tasks):
        newest = history[name].values[-1:]
        values |= {name: float(newest[0])} if np.isfinite(newest).all() else {}
    found = {name: history.last(standard_error_name(name)) for name in tasks}
    errors = {name: error for name, error in found.items() if error is not None}
    return Outcome(values, errors, _items(folder / ITEMS))


def _items(path: Path) -> dict[str, list[tuple[str, bool]]]:
    items: dict[str, list[tuple[str, bool]]] = {}
    for row in read_lines(path):
        for metric, choice in (row.get("chosen") or {}).items():
            of_metric = items.setdefault(f"eval/{row['task']}/{metric}", [])
            of_metric.append((row["item"], choice == row["answer"]))
    return items


def metric_names(outcomes: Iterable[Outcome], *, are_losses_comparable: bool = True) -> list[str]:
    """Returns the names of all metrics, that of the main one first.

    It is a held-out loss if there is one. Where losses are not comparable, scores come first.
    """
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.values)
    return sorted(
        names, key=lambda name: (name == TRAINING, is_loss(name) != are_losses_comparable)
    )


def are_losses_comparable(document: Document) -> bool:
    """Returns False for a sweep whose arms change what a loss measures."""
    return document.get("are_losses_comparable", True)


def is_loss(metric: str) -> bool:
    """Returns true for the names of losses."""
    return metric.endswith("/loss")


def judged(
    arm: Document, seeds: Sequence[int], outcomes: Mapping[str, Outcome], metric: str
) -> JudgedRuns:
    """Returns the runs by which an arm is judged.

    With nuisance settings, the first half of the seeds chooses the point with the best mean of the
    metric, and the other half judges it: a value that looked best by luck gains nothing from it.
    """
    by_point: dict[Point, dict[int, Outcome]] = {}
    for run in arm["runs"]:
        point = tuple((path, text) for path, text in run.get("tuned", ()))
        finished = by_point.setdefault(point, {})
        if run["folder"] in outcomes:
            finished[run["seed"]] = outcomes[run["folder"]]
    if len(by_point) < 2:
        return JudgedRuns(next(iter(by_point.values()), {}))
    choosing = seeds[: max(1, len(seeds) // 2)]
    sign = 1 if lower_is_better(metric) else -1
    costs: dict[Point, float] = {}
    for point, runs in by_point.items():
        values = [runs[seed].values.get(metric) for seed in choosing if seed in runs]
        known = [value for value in values if value is not None]
        if len(known) == len(choosing):
            costs[point] = sign * float(np.mean(known))
    if not costs:
        return JudgedRuns(
            {}, (), f"{arm['name']}: no nuisance setting has finished on all of its seeds"
        )
    best = min(costs, key=costs.__getitem__)
    runs = {seed: run for seed, run in by_point[best].items() if seed not in choosing}
    return JudgedRuns(runs, best, _at_edge(arm["name"], best, by_point))


def _at_edge(arm: str, best: Point, points: Iterable[Point]) -> str:
    """Returns the warning that a best value is the smallest or the largest one; "" where none."""
    tried: dict[str, dict[float, str]] = {}
    for path, text in (setting for point in points for setting in point):
        try:
            tried.setdefault(path, {})[float(text)] = text
        except ValueError:
            continue
    for path, text in best:
        numbers = tried.get(path, {})
        if len(numbers) > 1 and text in (numbers[min(numbers)], numbers[max(numbers)]):
            side = "smallest" if text == numbers[min(numbers)] else "largest"
            return f"{arm}: its best {path}={text} is the {side} value tried; try values beyond it"
    return ""


def shared_items(metric: str, arm: Sequence[Outcome], control: Sequence[Outcome]) -> Any:
    """Returns the scores [seeds, items] of both arms; None where runs have not the same items."""
    sides = [[outcome.items.get(metric, ()) for outcome in side] for side in (arm, control)]
    names = {tuple(name for name, _ in items) for side in sides for items in side}
    if len(names) != 1 or names == {()}:
        return None
    return [np.array([[right for _, right in items] for items in side], float) for side in sides]
