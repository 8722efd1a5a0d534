"""The diagnosis of a run on its way: live, and looked back upon for a report about the whole run.

Live, a finding is reported once when it appears and once when it ends. Memory is bounded: long
histories lose every second one of their older rows, which keeps the noise of single rows as it is.
Time is bounded too: judging takes at most a hundredth of it.
"""

import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.rules import BY_NAME, diagnose

ROWS = 4096  # largest number of values of one metric, over all of its layers, that are kept
SHARE = 0.01  # largest share of the time that judging takes
NUM_LOOKS = 60  # number of times at which a report looks back on the run
REPLAYED_ROWS = 8192  # largest number of rows of a series that it looks at


@dataclass(frozen=True)
class News:
    """A change of what is found: a finding that is new or that no longer holds."""

    finding: Finding
    step: int
    """The step at which the change was noticed."""
    has_come_up: bool
    """True where the finding is new; False where it no longer holds."""

    @property
    def line(self) -> str:
        """The line of the log."""
        finding, title = self.finding, self.finding.title.lower()
        if not self.has_come_up:
            return f"note: {title}: no longer so at step {self.step:,}"
        label = "note" if finding.severity == "info" else finding.severity
        return f"{label}: {title}. {finding.reading} What to do: {finding.advice}"


class Watch:
    """Judges a run as its metrics come in; it knows the history of earlier sessions."""

    def __init__(
        self,
        plan: TrainingPlan,
        history: History | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._now = now
        self._columns: dict[str, _Column] = {}
        self._known: dict[tuple[str, str], Finding] = {}
        self._noted: set[tuple[str, str]] = set()
        self._next = -np.inf
        if history is not None:
            for name, series in history.series.items():
                for row in zip(series.steps, series.times, series.values, strict=True):
                    self._columns.setdefault(name, _Column()).append(*row)
            self._remember()

    def begin(self, step: int, seconds: float, mark: Mapping[str, float]) -> None:
        """Takes the values with which a session begins, after `step` finished steps.

        Findings from before are not reported again: earlier sessions have reported them.
        """
        self.add(step, seconds, mark)
        self._remember()

    def _remember(self) -> None:
        self._known = {f.key: f for f in diagnose(self._history(), self._plan)}
        self._noted |= {key for key, f in self._known.items() if f.severity == "info"}

    def update(self, step: int, seconds: float, metrics: Mapping[str, float | None]) -> list[News]:
        """Takes the metrics of a step and its time in unix seconds; returns news, often none.

        The last step of a run and a loss that is no number are always judged.
        """
        numbers = {n: np.nan if x is None else float(x) for n, x in metrics.items()}
        self.add(step, seconds, numbers)
        is_last = step >= self._plan.total_steps
        is_urgent = is_last or not np.isfinite(numbers.get("train/loss", 0.0))
        started = self._now()
        if started < self._next and not is_urgent:
            return []
        findings = diagnose(self._history(), self._plan)
        ended = self._now()
        self._next = ended + (ended - started) / SHARE
        return self._news(findings, step)

    def add(self, step: int, seconds: float, values: Mapping[str, float | np.ndarray]) -> None:
        """Takes numbers, or arrays with one for each layer, to judge at the next update."""
        for name, value in values.items():
            self._columns.setdefault(name, _Column()).append(step, seconds, value)

    def _history(self) -> History:
        return History({name: column.series() for name, column in self._columns.items()})

    def _news(self, findings: list[Finding], step: int) -> list[News]:
        """Returns the changes since the last call that are worth a line."""
        now = {finding.key: finding for finding in findings}
        news = []
        for key, finding in now.items():
            before = self._known.get(key)
            if before is None or (finding.severity != before.severity and not finding.is_over):
                news.append(News(finding, step, has_come_up=True))
            elif finding.is_over and not before.is_over:
                news.append(News(finding, step, has_come_up=False))
        gone = [f for key, f in self._known.items() if key not in now and not f.is_over]
        news += [News(finding, step, has_come_up=False) for finding in gone]
        self._known = now
        return [piece for piece in news if self._is_worth_a_line(piece)]

    def _is_worth_a_line(self, piece: News) -> bool:
        """Returns whether the log reports it; a note is reported once."""
        finding = piece.finding
        if not piece.has_come_up:
            ends = BY_NAME[finding.name].end_is_news
            return ends == "always" or (ends == "warnings" and finding.severity != "info")
        if finding.severity == "info":
            is_new = finding.key not in self._noted
            self._noted.add(finding.key)
            return is_new
        return True


class _Column:
    """The rows of one metric; old ones are thinned."""

    def __init__(self) -> None:
        self._steps, self._times, self._values = array("d"), array("d"), array("d")
        self._shape: tuple[int, ...] = ()

    def append(self, step: float, seconds: float, value: float | np.ndarray) -> None:
        value = np.asarray(value, np.float64)
        width, self._shape = value.size, value.shape
        self._steps.append(step)
        self._times.append(seconds)
        self._values.extend(value.ravel())
        if len(self._steps) > ROWS // width:
            for items, size in ((self._steps, 1), (self._times, 1), (self._values, width)):
                rows = np.array(items).reshape(-1, size)
                old = len(rows) // 4 * 3
                items[:] = array("d", np.concatenate([rows[:old:2], rows[old:]]).ravel())

    def series(self) -> Series:
        steps, times, values = map(np.array, (self._steps, self._times, self._values))
        return Series(steps.astype(np.int64), times, values.reshape(-1, *self._shape))


def findings_over_time(history: History, plan: TrainingPlan) -> list[Finding]:
    """Returns the findings at the end of a history, and those of earlier times, which are over.

    Notes of earlier times are left out: they were about the state of that time.
    """
    found = {finding.key: finding for finding in diagnose(history, plan)}
    past: dict[tuple[str, str], Finding] = {}
    thinned = _thinned(history)
    for step in np.unique(np.linspace(0, history.step, NUM_LOOKS + 1).astype(int))[1:-1]:
        for finding in diagnose(thinned.until(int(step)), plan):
            is_note = finding.severity == "info"
            if not is_note and BY_NAME[finding.name].is_replayed and finding.key not in found:
                first = past.get(finding.key, finding).first
                past[finding.key] = replace(finding, first=min(first, finding.first), is_over=True)
    return sorted([*found.values(), *past.values()], key=lambda finding: finding.first)


def _thinned(history: History) -> History:
    """Returns every n-th row of long series, and the last."""
    return History(
        {
            name: series[(len(series) - 1) % stride :: stride]
            for name, series in history.series.items()
            if (stride := -(-len(series) // REPLAYED_ROWS))
        }
    )
