"""The points that laws are fitted to: a size, a length and a loss for each finished run."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.conditions import comparable, number_of, parse_condition
from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.serialize import parse_json
from jaxpretrain.laws.law import FLOPS, NAMES

COLUMNS = ("n", "d", "c", "loss")
"""The names of quantities in `--columns`: parameters, tokens, FLOPs, loss."""
LEAST = 6
"""The smallest number of points with a law of five coefficients."""
SAME = 0.01
"""The relative difference up to which sizes and lengths count as the same."""
_MISSING = ("", "nan", "na", "null", "none")  # what tables write where there is no number
Row = Mapping[str, Any]
"""The cells of a row of a table by their columns."""


@dataclass(frozen=True)
class Points:
    """Finished runs, one value of each array [n] for each of them."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    names: tuple[str, ...]
    """The folder of each run, or `row 7` of a table, where the first row is 1."""
    metric: str
    """The name of the loss: a metric of runs, or a column of a table."""
    tasks: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """The bits per byte of the right answers and the accuracy of each task, by `TASK/METRIC`."""
    warnings: tuple[str, ...] = ()
    """Reasons to doubt single points, and what was left out."""

    def __len__(self) -> int:
        return len(self.losses)

    def __getitem__(self, rows: np.ndarray) -> "Points":
        places = np.arange(len(self))[rows]
        tasks = {name: (x[rows], y[rows]) for name, (x, y) in self.tasks.items()}
        names = tuple(self.names[place] for place in places)
        n, d, losses = self.parameters[rows], self.tokens[rows], self.losses[rows]
        return replace(self, parameters=n, tokens=d, losses=losses, names=names, tasks=tasks)

    @property
    def flops(self) -> np.ndarray:
        """The FLOPs of training, 6 N D."""
        return FLOPS * self.parameters * self.tokens

    @cached_property
    def logs(self) -> np.ndarray:
        """The logs of parameters, tokens and losses [3, n]."""
        return np.log(np.stack([self.parameters, self.tokens, self.losses]))

    @property
    def hash(self) -> str:
        """The SHA-256 of all numbers; two sets of points with the same one are the same."""
        rows = np.stack([self.parameters, self.tokens, self.losses], axis=1).tolist()
        return sha256(json.dumps(sorted(rows)).encode()).hexdigest()

    def without_highest(self, number: int) -> "Points":
        """Returns the points without those of the highest losses, which fit a law least.

        Raises:
          InputError: so many points are not there.
        """
        if not 0 <= number < len(self):
            raise InputError(f"--drop_highest={number}: it is 0 to {len(self) - 1} of the points")
        return self[np.sort(np.argsort(self.losses, kind="stable")[: len(self) - number])]

    def require_law(self) -> None:
        """Checks that a law of five coefficients can be fitted.

        Raises:
          InputError: there are too few points, sizes or lengths, or both only grow together.
        """
        if len(self) < LEAST:
            raise InputError(f"{len(self)} points: a law with 5 coefficients takes {LEAST} or more")
        if reason := undetermined(self.logs[:2]):
            raise InputError(reason)


def undetermined(places: np.ndarray) -> str:
    """Returns why runs at some places determine no law; "" where they do.

    Two sizes have two values of E + A / N^alpha, which fit any alpha, and likewise two lengths.
    Where D is a power of N, the two terms can change places.

    Args:
      places: log N and log D [2, n].
    """
    kinds = same(places)
    for what, values, found in zip(("parameters", "tokens"), places, kinds, strict=True):
        if (number := len(np.unique(found))) == 1:
            return f"all points have {np.exp(values[0]):.4g} {what}: a law takes three or more"
        if number == 2:
            return f"the points have only two values of {what}: a law takes three or more"
    if (number := len(np.unique(kinds, axis=1).T)) < len(NAMES):
        return f"the points are {number} runs, repeated: a law with 5 coefficients takes 5 or more"
    slope, level = np.polyfit(places[0], places[1], 1)
    if np.abs(places[1] - slope * places[0] - level).max() < SAME:
        return (
            f"all points have tokens = {np.exp(level):.3g} parameters^{slope:.3g}: their two terms "
            "cannot be told apart; take other lengths for some of the sizes"
        )
    return ""


def same(logs: np.ndarray) -> np.ndarray:
    """Returns logs of sizes or lengths, rounded so that those that count as the same are equal."""
    return (logs / SAME).round()


def read_table(path: Path) -> list[Row]:
    """Returns the rows of a CSV file with a heading, or of a JSON-lines file.

    Raises:
      InputError: there is no such file, or it is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--points={path}: cannot be read ({error})") from None
    if path.suffix == ".csv":
        try:
            reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
            rows: list[Any] = list(reader)
        except csv.Error as error:
            raise InputError(f"--points={path}: is no table ({error})") from None
        heading = reader.fieldnames or ()
        if twice := [name for name in heading if name and heading.count(name) > 1]:
            raise InputError(f"--points={path}: two columns are called {twice[0]}; rename one")
    elif path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                rows += [parse_json(line)] if line.strip() else []
            except ValueError as error:
                raise InputError(f"--points={path}: line {number} is not JSON ({error})") from None
    else:
        raise InputError(f"--points={path}: a table ends with .csv or .jsonl")
    if not rows or not all(isinstance(row, dict) and row for row in rows):
        raise InputError(f"--points={path}: holds no rows with named columns")
    for place, row in enumerate(rows):
        if None in row:  # as with a comma inside of a number
            raise InputError(f"--points={path}: row {place + 1} has more cells than the heading")
    return rows


def parse_columns(text: str, rows: Sequence[Row]) -> dict[str, str]:
    """Returns the column of each quantity in `n=NAME,d=NAME,loss=NAME`; `c=NAME` for FLOPs.

    Raises:
      InputError: the text has another form, or the table has no such column.
    """
    found: dict[str, str] = {}
    for item in text.split(","):
        quantity, equals, column = item.partition("=")
        if quantity not in COLUMNS or not equals:
            hint = nearest(quantity, COLUMNS) or " It is n=NAME,d=NAME,loss=NAME, or c= for FLOPs."
            raise InputError(f"--columns={text}: '{item}' names no quantity.{hint}")
        if quantity in found:
            raise InputError(f"--columns={text}: names {quantity} twice")
        found[quantity] = require_column(column, rows, "--columns")
    if found.keys() not in ({"n", "loss", "d"}, {"n", "loss", "c"}):
        raise InputError(f"--columns={text}: give n=, loss=, and d= or c=, not both")
    if len({*found.values()}) < len(found):
        raise InputError(f"--columns={text}: each quantity has a column of its own")
    return found


def require_column(name: str, rows: Sequence[Row], flag: str) -> str:
    """Returns the name of a column; InputError where the table has none of it."""
    known = dict.fromkeys(column for row in rows for column in row)
    if name not in known:
        hint = nearest(name, known) or f" The columns are {', '.join([*known][:8])}."
        raise InputError(f"{flag}: the table has no column {name}.{hint}")
    return name


def matching(rows: Sequence[Row], conditions: Iterable[str]) -> np.ndarray:
    """Returns true for each row [n] that all conditions hold for.

    A condition is `COLUMN>=NUMBER`, with another of <, <=, > and >=, or `COLUMN=A,B`, for rows with
    one of these values, and `COLUMN!=A,B` for the others. Values are compared as texts, or as
    numbers where both are.

    Raises:
      InputError: a condition has another form, or names no column or a value that no row has.
    """
    holds = np.ones(len(rows), bool)
    for text in conditions:
        condition = parse_condition(text)
        column = require_column(condition.column, rows, f"--where={text}")
        if condition.sign in ("=", "!="):
            known = dict.fromkeys(comparable(row.get(column)) for row in rows)
            if unknown := [x for x in condition.wanted if x != "" and x not in known]:
                value, *names = (
                    f"{x:g}" if isinstance(x, float) else str(x) for x in (unknown[0], *known)
                )
                hint = nearest(value, names) or f" There are {', '.join(names[:8])}."
                raise InputError(f"--where={text}: no row has the {column} {value}.{hint}")
        holds &= np.array([condition.holds(row.get(column)) for row in rows])
    if not holds.any():
        raise InputError("--where: no row passes all tests")
    return holds


def points_of(
    rows: Sequence[Row],
    columns: Mapping[str, str],
    conditions: Iterable[str] = (),
    tasks: Mapping[str, tuple[str, str]] | None = None,
) -> Points:
    """Returns the points in the rows of a table; rows without a size or a length are left out.

    Args:
      rows: the rows of the table.
      columns: the column of each quantity. Tokens are C / 6N where only FLOPs are known.
      conditions: what must hold for a row, see `matching`.
      tasks: the columns with the bits per byte and the accuracy of each task.

    Raises:
      InputError: no row is left, a cell is no number, or one that is not positive and finite.
    """
    kept = np.flatnonzero(matching(rows, conditions))
    values = {quantity: _values(rows, column, kept) for quantity, column in columns.items()}
    parameters = values["n"]
    with np.errstate(all="ignore"):  # such numbers are named below
        tokens = values["d"] if "d" in values else values["c"] / (FLOPS * parameters)
    known = ~np.isnan(parameters) & ~np.isnan(values["d" if "d" in values else "c"])
    if not known.any():
        raise InputError(f"no row has a size and a length: {', '.join(columns.values())}")
    missing = len(known) - int(known.sum())
    note = f"{missing} of {len(known)} rows have no size or length and are left out"
    found = Points(
        parameters[known],
        tokens[known],
        values["loss"][known],
        tuple(f"row {place + 1}" for place in kept[known]),
        columns["loss"],
        {
            name: (_values(rows, bits, kept)[known], _values(rows, share, kept)[known])
            for name, (bits, share) in (tasks or {}).items()
        },
        (note,) * bool(missing),
    )
    require_numbers(found)
    return found


def require_numbers(points: Points) -> None:
    """Checks that points have positive finite numbers; InputError names the first without."""
    for name, *numbers in zip(
        points.names, points.parameters, points.tokens, points.losses, strict=True
    ):
        for what, number in zip(("parameters", "tokens", points.metric), numbers, strict=True):
            if not 0 < number < math.inf:
                shown = "missing" if math.isnan(number) else number
                raise InputError(
                    f"{name}: {what} is {shown}, not a positive finite number; leave it out, in a "
                    "table with --where"
                )


def _values(rows: Sequence[Row], column: str, kept: np.ndarray) -> np.ndarray:
    """Returns the numbers in some rows of a column, NaN for empty cells, null and NaN itself.

    Raises:
      InputError: a cell is something else.
    """
    numbers = []
    for place in kept:
        cell = rows[place].get(column)
        number = math.nan if isinstance(cell, bool) else number_of(cell)
        if math.isnan(number) and str(comparable(cell)).lower() not in _MISSING:
            raise InputError(
                f"row {place + 1}: {column} is {json.dumps(cell)}, no number such as 1.5e9; "
                "correct it, or leave it out with --where"
            )
        numbers.append(number)
    return np.array(numbers)
