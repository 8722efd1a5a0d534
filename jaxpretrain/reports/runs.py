"""What a report knows of a run: all that its folder holds, judged."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.diagnosis.findings import Finding, Severity, worst
from jaxpretrain.diagnosis.forecast import Forecast, forecast
from jaxpretrain.diagnosis.history import History, read_history
from jaxpretrain.diagnosis.intent import Plan, plan_in
from jaxpretrain.diagnosis.remaining import Check, Estimate, checks, estimate
from jaxpretrain.diagnosis.replay import findings_over_time
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.storage.run_documents import ExperimentFile, PlanFile, read_document

FORECAST_PARTS = (0.1, 0.2, 0.3, 0.5, 0.7)
QUIET = 600.0
"""Seconds without a line after which a run may have stopped,"""
QUIET_REPORTS = 20
"""when it usually writes so many lines in a shorter time."""


@dataclass(frozen=True)
class Run:
    """A run as its files show it."""

    name: str
    history: History
    plan: Plan
    document: dict[str, Any]
    """`experiment.json`; empty where there is none."""
    planned: dict[str, Any]
    """`plan.json`, what `jaxpretrain.plan` said before; empty where there is none."""
    samples: list[dict[str, Any]]
    """Lines of `samples.jsonl`."""
    now: float
    """When the files were read, unix seconds."""

    @cached_property
    def findings(self) -> list[Finding]:
        """Those that hold, and those of the past."""
        return findings_over_time(self.history, self.plan)

    @cached_property
    def severity(self) -> Severity | None:
        """Of the worst finding that holds."""
        return worst(self.findings)

    @cached_property
    def estimate(self) -> Estimate | None:
        """The time of the whole run."""
        return estimate(self.history, self.plan.total_steps)

    @cached_property
    def checks(self) -> list[Check]:
        """Earlier estimates and what came of them."""
        return checks(self.history)

    @cached_property
    def forecast(self) -> Forecast | None:
        """Of the final loss."""
        return forecast(self.history, self.plan)

    @cached_property
    def earlier_forecasts(self) -> list[Forecast]:
        """Forecasts that could have been made on the way."""
        parts = (part * self.plan.total_steps for part in FORECAST_PARTS)
        made = [
            forecast(self.history.until(step), self.plan)
            for step in parts
            if step < self.history.step
        ]
        return [one for one in made if one is not None]

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return 0 < self.plan.total_steps <= self.history.step

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has been written for so long that the run has probably stopped."""
        times = self.history["train/loss"].times[-QUIET_REPORTS:]
        usual = QUIET_REPORTS * float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return self.now - self.history.span[1] > max(QUIET, usual)

    @property
    def lost_seconds(self) -> float:
        """Time between the first and the last line that the clock does not know of.

        Work that was done again after a restart, and the pauses between sessions.
        """
        first, last = self.history.span
        known = self.estimate.spent if self.estimate else 0.0
        return max(last - first - known, 0.0) if self.history.resumed else 0.0


def read_run(workdir: Path) -> Run:
    """The run in a folder.

    Raises:
      InputError: it has no metrics, or a file that cannot be read.
    """
    history = read_history(workdir / "metrics.jsonl")
    document = _read(workdir / "experiment.json", ExperimentFile)
    return Run(
        name=workdir.resolve().name,
        history=history,
        plan=plan_in(document, history),
        document=document,
        planned=_read(workdir / "plan.json", PlanFile),
        samples=read_lines(workdir / "samples.jsonl"),
        now=time.time(),
    )


def _read(path: Path, kind: type) -> dict[str, Any]:
    return read_document(path, kind) if path.exists() else {}
