"""Runs as a report needs them: what their files say, how they differ, and which are alike."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, diff
from jaxpretrain.diagnosis.findings import Finding, Severity, worst
from jaxpretrain.diagnosis.forecast import Forecast, forecast
from jaxpretrain.diagnosis.goodput import Goodput, goodput, read_sessions
from jaxpretrain.diagnosis.history import EMPTY, History, Series, read_history
from jaxpretrain.diagnosis.intent import TrainingPlan, plan_in
from jaxpretrain.diagnosis.predicted import TRAINING, final_value, read_prediction
from jaxpretrain.diagnosis.remaining import Estimate, estimate
from jaxpretrain.diagnosis.watch import findings_over_time
from jaxpretrain.storage.files import relative
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.storage.paths import is_remote
from jaxpretrain.storage.run_documents import (
    METRICS,
    BaselinesFile,
    ExperimentFile,
    PlanFile,
    read_document,
    runs_in,
)

FORECAST_PARTS = (0.1, 0.2, 0.3, 0.5, 0.7)
"""The parts of the run at which earlier forecasts are shown."""
QUIET = 600.0
"""The seconds without a line after which a run may have stopped."""
QUIET_REPORTS = 20
"""The number of reports whose usual time must pass too before a run may have stopped."""
MOST_FIELDS = 3
"""The largest number of fields in the name of a group."""
# Changes of these fields repeat a run with other random numbers or are about its files alone.
_REPEATED = ("seed", "checkpoint.", "monitor.")
Color = int | dict[str, float]
"""A place in the palette of the page or, as `{"at": x}`, on its scale from 0 to 1."""


@dataclass(frozen=True)
class RunHistory:
    """A run as its files show it."""

    name: str
    """The name of the folder; with other runs, its path below the folder that holds all of them."""
    history: History
    plan: TrainingPlan
    document: Document
    """The content of `experiment.json`; empty where there is none."""
    planned: Document
    """The content of `plan.json`, which `jaxpretrain.plan` writes; empty where there is none."""
    samples: list[Document]
    """The lines of `samples.jsonl`."""
    now: float
    """The time at which the files were read, in unix seconds."""
    folder: Path = Path()
    baseline_rows: Sequence[Document] = ()
    """The rows of `baselines.json`, which `scripts/baselines.py` writes."""

    @cached_property
    def findings(self) -> list[Finding]:
        """The findings that hold, and those of the past."""
        return findings_over_time(self.history, self.plan)

    @cached_property
    def severity(self) -> Severity | None:
        """The severity of the worst finding that holds."""
        return worst(self.findings)

    @cached_property
    def estimate(self) -> Estimate | None:
        """The time of the whole run."""
        return estimate(self.history, self.plan.total_steps)

    @cached_property
    def forecast(self) -> Forecast | None:
        """The forecast of the final loss."""
        return forecast(self.history, self.plan)

    @cached_property
    def earlier_forecasts(self) -> list[Forecast]:
        """The forecasts that could have been made earlier in the run."""
        steps = [part * self.plan.total_steps for part in FORECAST_PARTS]
        known = (self.history.until(step) for step in steps if step < self.history.step)
        return [one for history in known if (one := forecast(history, self.plan)) is not None]

    @property
    def last_step(self) -> int:
        """The newest step that is known: of a line of metrics, or of a checkpoint after it."""
        return max(self.history.step, self.document.get("last_saved") or 0)

    @property
    def final_loss(self) -> float | None:
        """The mean of the training loss over the last tenth of the steps so far."""
        return final_value(self.history, TRAINING, self.history.step)

    def baselines(self, metric: str) -> dict[str, float]:
        """Returns the baselines of the data in `loss` or `bits_per_byte`, by their names.

        Compressors are left out: they give no probability to a token.
        """
        key = "nats_per_token" if metric == "loss" else metric
        models = [row for row in self.baseline_rows if row.get("nats_per_token") is not None]
        known = {row["name"]: row.get(key) for row in models}
        if metric == "loss":
            for name in self.history.names("eval/", "/loss_predict_zero"):
                known["predicting zero"] = self.history.last(name)
        return {name: x for name, x in known.items() if x is not None and np.isfinite(x)}

    @property
    def is_finished(self) -> bool:
        """True where all steps are done."""
        return 0 < self.plan.total_steps <= self.history.step

    @property
    def is_quiet(self) -> bool:
        """True where the last line is so old that the run has probably stopped."""
        times = self.history["train/loss"].times[-QUIET_REPORTS:]
        usual = QUIET_REPORTS * float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return self.now - self.history.span[1] > max(QUIET, usual)

    @cached_property
    def goodput(self) -> Goodput | None:
        """The time of the run by cause; None for runs that have not written it down."""
        return goodput(read_sessions(self.folder))

    @property
    def lost_seconds(self) -> float:
        """The seconds of pauses between sessions and of work that was repeated after them."""
        first, last = self.history.span
        known = self.estimate.spent if self.estimate else 0.0
        return max(last - first - known, 0.0) if self.history.resumed else 0.0


def run_folders(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Returns the folders of runs among paths and right below them, and the folders without any.

    Raises:
      InputError: a path does not exist, or none holds a run.
    """
    found: dict[Path, list[Path]] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: no run has written metrics there")
        found[path] = runs_in(path)
    folders = list(dict.fromkeys(folder for below in found.values() for folder in below))
    if not folders:
        names = ", ".join(map(str, paths))
        raise InputError(f"{names}: no run has written metrics there; name a run's folder")
    return folders, [path for path, below in found.items() if not below and path.is_dir()]


def common_folder(folders: Sequence[Path]) -> Path:
    """Returns the folder that holds all runs; that of a single run is its own."""
    if any(map(is_remote, folders)):
        common = folders[0]
        while not all(folder.is_relative_to(common) for folder in folders):
            common = common.parent
        return common if is_remote(common) else Path.cwd()  # in a bucket and on a disk
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))


def read_runs(folders: Sequence[Path]) -> list[RunHistory]:
    """Returns the runs in some folders; InputError: one has no metrics or an unreadable file."""
    root = common_folder(folders)
    return [read_run(f, _name_below(f, root) if len(folders) > 1 else "") for f in folders]


def _name_below(folder: Path, root: Path) -> str:
    return str(relative(folder, root)) if is_remote(folder) else os.path.relpath(folder, root)


def folder_name(folder: Path) -> str:
    """Returns the name of a folder, also of one that is written as `.`."""
    return folder.name if is_remote(folder) else folder.resolve().name


def read_run(workdir: Path, name: str = "") -> RunHistory:
    """Returns the run in a folder, as it is called; InputError as for `read_runs`."""
    history = read_history(workdir / METRICS)
    document = _read(workdir / "experiment.json", ExperimentFile)
    return RunHistory(
        name=name or folder_name(workdir),
        history=history,
        plan=replace(plan_in(document, history), prediction=read_prediction(workdir)),
        document=document,
        planned=_read(workdir / "plan.json", PlanFile),
        samples=read_lines(workdir / "samples.jsonl"),
        now=time.time(),
        folder=workdir,
        baseline_rows=_read(workdir / "baselines.json", BaselinesFile).get("rows", ()),
    )


def _read(path: Path, kind: type) -> Document:
    return read_document(path, kind) if path.exists() else {}


@dataclass(frozen=True)
class Group:
    """Runs of one config, drawn as one curve: the seeds and what is saved may differ."""

    name: str
    """The legend of its curves; "" where there is no other group."""
    runs: list[RunHistory]
    places: list[int]
    """The positions of the runs among all."""
    color: Color

    def label(self, name: str) -> str:
        """Returns the legend of one of its curves."""
        return ": ".join(part for part in (self.name, name) if part)


def differences(runs: Sequence[RunHistory]) -> dict[str, list[Any]]:
    """Returns the fields in which the configs of runs differ, each with the value of each run."""
    first = runs[0].document.get("config", {})
    found: dict[str, list[Any]] = {}
    for place, run in enumerate(runs[1:], start=1):
        for path, left, right in diff(first, run.document.get("config", {})):
            found.setdefault(path, [left] * len(runs))[place] = right
    return found


def grouped(runs: Sequence[RunHistory]) -> list[Group]:
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
    steps = reduce(np.intersect1d, (curve.steps for curve in curves)) if curves else EMPTY.steps
    rows = [curve[np.isin(curve.steps, steps)] for curve in curves]
    if not len(steps) or any(len(row) != len(steps) for row in rows):
        return EMPTY, np.zeros((0, 0))
    values = np.array([row.values for row in rows])
    return Series(steps, rows[0].times, values.mean(axis=0)), values


def named(runs: Sequence[RunHistory], names: Callable[[History], Iterable[str]]) -> list[str]:
    """Returns names in the histories of runs, each once."""
    return list(dict.fromkeys(name for run in runs for name in names(run.history)))
