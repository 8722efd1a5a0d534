"""The history of a run: `metrics.jsonl` and `signals.jsonl` as columns.

Lines with the same names become rows of one array, block by block, so that a million steps are read
in seconds. A torn last line, of a run that goes on or has crashed, is left out.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Self

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.stack import is_stacked
from jaxpretrain.storage.jsonl import bad_line, has_lines, read_blocks


@dataclass(frozen=True)
class Series:
    """The values of one name over the run, in the order of writing."""

    steps: np.ndarray
    """The steps: int64 [n]."""
    times: np.ndarray
    """The times in unix seconds: float64 [n]."""
    values: np.ndarray
    """The values: float64 [n], or [n, layers] from the bottom; NaN where not finite or unknown."""

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, rows: slice | np.ndarray) -> Self:
        return type(self)(self.steps[rows], self.times[rows], self.values[rows])

    def between(self, first: float, last: float) -> Self:
        """Returns the rows with first <= step <= last."""
        return self[slice(*np.searchsorted(self.steps, [first, np.nextafter(last, np.inf)]))]

    @cached_property
    def finite(self) -> Self:
        """The rows whose values are all finite."""
        is_finite = np.isfinite(self.values)
        return self[np.asarray(is_finite.all(axis=tuple(range(1, is_finite.ndim))))]


EMPTY = Series(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class History:
    """The series of a run by their names."""

    series: Mapping[str, Series] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Series:
        return self.series.get(name, EMPTY)

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Returns the names with a prefix and a suffix, in the order of appearance."""
        return [n for n in self.series if n.startswith(prefix) and n.endswith(suffix)]

    def last(self, name: str) -> float | None:
        """Returns the last finite value of a name; None without one."""
        values = self[name].finite.values
        return float(values[-1]) if len(values) else None

    def until(self, step: float) -> Self:
        """Returns the history up to `step` and its evaluation."""
        cut = {name: series.between(0, step) for name, series in self.series.items()}
        return type(self)({name: series for name, series in cut.items() if len(series)})

    @property
    def loss(self) -> Series:
        """The training loss, without rows where it is not finite."""
        return self["train/loss"].finite

    @cached_property
    def step(self) -> int:
        """The last step with any value; 0 without one."""
        return max((int(s.steps[-1]) for s in self.series.values() if len(s)), default=0)

    @cached_property
    def span(self) -> tuple[float, float]:
        """The times of the first and the last line in unix seconds."""
        rows = [s.times for s in self.series.values() if len(s)]
        return (min(t[0] for t in rows), max(t[-1] for t in rows)) if rows else (0.0, 0.0)

    @cached_property
    def resumed(self) -> list[int]:
        """The number of finished steps at the start of each session but the first."""
        return [int(step) for step in self["run/num_devices"].steps[1:]]

    @cached_property
    def unit(self) -> str:
        """The name of the units: "tokens" or "images"."""
        return "images" if "train/images" in self.series else "tokens"


class _Columns:
    """Collects records with "step" and "time" into a `History`."""

    def __init__(self) -> None:
        self._num_records = 0
        self._pieces: dict[str, list[tuple[np.ndarray, ...]]] = {}
        self._lengths: dict[str, int] = {}

    def add(self, records: Iterable[Mapping[str, object]]) -> None:
        """Adds records in order, or none of them.

        Raises ValueError where a record has no "step" or "time", a value is not a number, or the
        value of layers is not a list of numbers of the same length as before.
        """
        groups: dict[tuple[str, ...], list[tuple[object, ...]]] = {}
        number = self._num_records
        for number, record in enumerate(records, start=self._num_records + 1):
            groups.setdefault(tuple(record), []).append((number, *record.values()))
        lengths, pieces = dict(self._lengths), []
        for names, rows in groups.items():
            numbers, *values = zip(*rows, strict=True)
            columns = {n: _column(n, v, lengths) for n, v in zip(names, values, strict=True)}
            if not {"step", "time"} <= columns.keys():
                raise ValueError('no "step" and "time"')
            where = (np.array(numbers), columns.pop("step"), columns.pop("time"))
            if not np.isfinite(where[1:]).all():
                raise ValueError('"step" and "time" are not both numbers')
            pieces += [(name, (*where, column)) for name, column in columns.items()]
        self._num_records, self._lengths = number, lengths
        for name, piece in pieces:
            self._pieces.setdefault(name, []).append(piece)

    def history(self) -> History:
        """Returns the history of all records."""
        series = {}
        for name, pieces in self._pieces.items():
            numbers, steps, times, values = map(np.concatenate, zip(*pieces, strict=True))
            order = np.argsort(numbers, kind="stable")
            values = np.where(np.isfinite(values), values, np.nan)
            series[name] = Series(steps[order].astype(np.int64), times[order], values[order])
        return History(series)


def read_history(path: Path) -> History:
    """Returns the history in a `metrics.jsonl` and the `signals.jsonl` beside it, if there is one.

    Raises InputError where the file is missing, or a complete line is no line of metrics.
    """
    if not has_lines(path):
        raise InputError(f"{path} does not exist: no run has written metrics there")
    columns = _Columns()
    for file in (path, path.with_name("signals.jsonl")):
        for first, records in read_blocks(file):
            try:
                columns.add(records)
            except ValueError:  # one line is wrong: adding them one by one finds it
                for number, record in enumerate(records, start=first):
                    try:
                        columns.add([record])
                    except ValueError as error:
                        raise bad_line(file, number, str(error)) from None
    return columns.history()


def _column(name: str, values: Sequence[object], lengths: dict[str, int]) -> np.ndarray:
    """Returns the values as float64 [n] or, of layers, [n, layers]; None becomes NaN.

    `lengths` holds the number of layers of each name and gets that of a new name.
    """
    scalars, wanted = values, "a number"
    if name.startswith("signals/") and is_stacked(name):
        known = lengths.get(name)
        wanted = (
            f"a list of {known} numbers, as in the lines before" if known else "a list of numbers"
        )
        rows = [value if isinstance(value, list) else [] for value in values]
        length = lengths.setdefault(name, len(rows[0]))
        scalars = [*itertools.chain.from_iterable(rows)] if {*map(len, rows)} == {length} else []
    kinds = {*map(type, scalars)}
    if not kinds or not kinds <= {int, float, NoneType}:
        raise ValueError(f'"{name}" is not {wanted}')
    return np.array(values, np.float64)
