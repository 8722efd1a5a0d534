"""The live diagnosis of a run: a finding is reported once when it appears and once when it ends.

Memory is bounded: long histories lose every second one of their older rows, which keeps the noise
of single rows as it is. Time is bounded too: judging takes at most a hundredth of it.
"""

import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.diagnosis.rules import BY_NAME, diagnose

ROWS = 4096
"""The largest number of values of one metric, over all of its layers, that are kept."""
SHARE = 0.01
"""The largest share of the time that judging takes."""


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
    """Judges a run as its metrics come in.

    Args:
      plan: the plan of the run.
      history: the history of earlier sessions.
      now: a clock of seconds.
    """

    def __init__(
        self,
        plan: Plan,
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
                self._columns[name] = _Column.of(series)
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
        for key, finding in self._known.items():
            if key not in now and not finding.is_over:
                news.append(News(finding, step, has_come_up=False))
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

    @classmethod
    def of(cls, series: Series) -> Self:
        column = cls()
        for row in zip(series.steps, series.times, series.values, strict=True):
            column.append(*row)
        return column

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
