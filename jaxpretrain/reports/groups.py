"""Runs side by side: the fields in which they differ, and groups of equal configs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpretrain.config.serialize import diff
from jaxpretrain.diagnosis.history import EMPTY, History, Series
from jaxpretrain.reports.runs import Run

Color = int | dict[str, float]
"""A place in the palette of the page or, as `{"at": x}`, on its scale from 0 to 1."""
MOST_FIELDS = 3
"""The largest number of fields in the name of a group."""
# Changes of these fields repeat a run with other random numbers or are about its files alone.
_REPEATED = ("seed", "checkpoint.", "monitor.")


@dataclass(frozen=True)
class Group:
    """Runs of one config, drawn as one curve: the seeds and what is saved may differ."""

    name: str
    """The legend of its curves; "" where there is no other group."""
    runs: list[Run]
    places: list[int]
    """The positions of the runs among all."""
    color: Color

    def label(self, name: str) -> str:
        """Returns the legend of one of its curves."""
        return ": ".join(part for part in (self.name, name) if part)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the fields in which the configs of runs differ, each with the value of each run."""
    first = runs[0].document.get("config", {})
    found: dict[str, list[Any]] = {}
    for place, run in enumerate(runs[1:], start=1):
        for path, left, right in diff(first, run.document.get("config", {})):
            found.setdefault(path, [left] * len(runs))[place] = right
    return found


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Returns the runs in groups, coloured by the value of the only number that differs, if any."""
    changed = {path: v for path, v in differences(runs).items() if not path.startswith(_REPEATED)}
    members: dict[object, list[int]] = {}
    for place, run in enumerate(runs):
        values = tuple(str(values[place]) for values in changed.values())
        members.setdefault(values if run.document.get("config") else place, []).append(place)
    scale = _scale([[of[places[0]] for places in members.values()] for of in changed.values()])
    groups = []
    for number, places in enumerate(members.values()):
        first = runs[places[0]]
        shown = [f"{path.rpartition('.')[2]} {of[places[0]]}" for path, of in changed.items()]
        name = first.name if len(runs) > 1 else ""
        if len(places) > 1:
            what = shown if len(shown) <= MOST_FIELDS else [f"as {first.name}"]
            name = ", ".join([*what, f"mean of {len(places)}"])
        color = scale[number] if scale else number
        groups.append(Group(name, [runs[place] for place in places], places, color))
    return groups


def _scale(fields: list[list[Any]]) -> list[Color]:
    """Returns the places of groups on the scale of colours; [] unless one number differs."""
    if len(fields) != 1 or not {*map(type, fields[0])} <= {int, float}:
        return []
    values = np.array(fields[0], float)
    values = np.log(values) if values.min() > 0 else values
    span = float(values.max()) - float(values.min())
    if not 0 < span < np.inf:
        return []
    return [{"at": round((value - values.min()) / span, 3)} for value in values.tolist()]


def shared(curves: Sequence[Series]) -> tuple[Series, np.ndarray]:
    """Returns the mean of curves at the steps that all have, and their values [n, steps]."""
    if not curves:
        return EMPTY, np.zeros((0, 0))
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    rows = [curve[np.isin(curve.steps, steps)] for curve in curves]
    if not len(steps) or any(len(row) != len(steps) for row in rows):
        return EMPTY, np.zeros((0, 0))
    values = np.array([row.values for row in rows])
    return Series(steps, rows[0].times, values.mean(axis=0)), values


def named(runs: Sequence[Run], names: Callable[[History], Iterable[str]]) -> list[str]:
    """Returns names in the histories of runs, each once."""
    return list(dict.fromkeys(name for run in runs for name in names(run.history)))
