"""The conditions of `--where`: what must hold for a row of a table or of a corpus."""

import math
import operator
import re
from dataclasses import dataclass

from jaxpretrain.config.errors import InputError

_FORM = re.compile(r"([^<>=!]+)(<=|>=|!=|<|>|=)(.*)")
_COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Condition:
    """A test of one column of a row."""

    column: str
    sign: str
    wanted: tuple[float | str, ...]
    """The limit of a comparison, or the values that are equal."""

    def holds(self, value: object) -> bool:
        """Returns true for a value of the column that passes the test."""
        if self.sign in _COMPARED:
            return bool(_COMPARED[self.sign](number_of(value), self.wanted[0]))
        return (comparable(value) in self.wanted) == (self.sign == "=")


def parse_condition(text: str) -> Condition:
    """Returns the test in `COLUMN>=NUMBER`, also with <, <= or >, `COLUMN=A,B` or `COLUMN!=A,B`.

    Equal values are compared as numbers where both are, and else as texts; null is an empty text.

    Raises:
      InputError: the text has another form, or what is compared with < or > is no number.
    """
    if (parts := _FORM.fullmatch(text)) is None:
        raise InputError(f"--where={text}: write COLUMN>=NUMBER, or COLUMN=VALUE,VALUE")
    column, sign, wanted = parts[1].strip(), parts[2], parts[3]
    if sign not in _COMPARED:
        if wanted.startswith(("=", "<", ">")):
            raise InputError(f"--where={text}: {sign}{wanted[0]} is no sign; it is =, !=, < or >=")
        return Condition(column, sign, tuple(map(comparable, wanted.split(","))))
    if math.isnan(limit := number_of(wanted)):
        raise InputError(f"--where={text}: '{wanted}' is no number")
    return Condition(column, sign, (limit,))


def number_of(value: object) -> float:
    """Returns the number that a value is or spells, NaN for others."""
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return math.nan


def comparable(value: object) -> float | str:
    """Returns what a value is compared as: a number where it spells one, or else a text."""
    if isinstance(value, bool):
        return str(value).lower()
    number = number_of(value)
    if not math.isnan(number):
        return number
    return "" if value is None else str(value).strip()
