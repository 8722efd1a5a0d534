"""Numbers, durations and times in words, for the terminal and reports."""

import math
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import numpy as np

EVAL_DIGITS = 5
"""The significant digits of evaluation results."""
Row = Sequence[str | float | None]
"""The cells of a row of a table: texts and numbers; None where a number is not known."""
_LABEL_COLUMNS = 11
_PLAIN = 6  # numbers below this power of ten have no exponent
_YEAR = 365 * 86_400.0
_CENTURY = 100 * _YEAR


def to_number(value: object) -> int | float | None:
    """Returns a scalar of Python, numpy or JAX as a Python number; None stays None.

    A float32 or bfloat16 becomes the shortest decimal that reads back as the same value in its own
    type (3.412, not 3.4119999408721924). An integer that no float holds becomes infinite.
    """
    if value is None:
        return None
    scalar = np.asarray(value).reshape(())[()]
    if not isinstance(scalar, int) and scalar.dtype.kind not in "biu":
        return float(str(scalar))
    number = int(scalar)
    if abs(number) > sys.float_info.max:
        return math.inf if number > 0 else -math.inf
    return number


def format_number(value: float | None, digits: int = 4) -> str:
    """Returns a number with some significant digits, one fewer below 1.

    Examples are 0.250, 3.412, 8480 and 1.235e+45; integers of up to six digits stay whole.
    """
    number = to_number(value)
    if number is None or not math.isfinite(number):
        return "?" if number is None else str(number)
    if isinstance(number, int) and abs(number) < 10**_PLAIN:
        return str(number)
    decimals = digits - 1 if abs(number) >= 1 else digits - 2
    exponent = int(f"{number:.{decimals}e}".partition("e")[2])  # once rounded
    if -digits <= exponent < _PLAIN:
        return f"{number:.{max(decimals - exponent, 0)}f}"
    return f"{number:.{decimals}e}"


def format_signed(value: float | None, digits: int) -> str:
    """Returns a number as `format_number` does, with a plus where it is positive."""
    return ("+" if value is not None and value > 0 else "") + format_number(value, digits)


def format_known(value: float | None, spec: str, unknown: str = "unknown") -> str:
    """Returns a number by a format of Python, such as `+.3f`, or a word where it is None."""
    return unknown if value is None else format(value, spec)


def format_count(count: float) -> str:
    """Returns a number with three significant digits and a suffix: 950, 12.3k, 1.2M, 2T."""
    for suffix in ("", "k", "M", "B"):
        if not abs(count) >= 999.5:
            return f"{count:.3g}{suffix}"
        count /= 1000
    return f"{count:.3g}T"


def format_seconds(seconds: float) -> str:
    """Returns a duration in its two largest units: 45s, 3m12s, 1h05m, 2d04h; or in years."""
    if not math.isfinite(seconds):
        return "?"
    if seconds >= _CENTURY:
        return f"{format_count(seconds / _YEAR)} years"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02d}h"
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minutes}m{second:02d}s" if minutes else f"{second}s"


def format_finish(finish: float, now: float) -> str:
    """Returns the local time of `finish`, unix seconds, with its date unless that is today."""
    if not finish - now < _CENTURY:  # NaN too
        return "?"
    end = datetime.fromtimestamp(finish)
    is_today = end.date() == datetime.fromtimestamp(now).date()
    return f"{end:%H:%M}" if is_today else f"{end:%Y-%m-%d %H:%M}"


def count_of(number: int, unit: str) -> str:
    """Returns a number with a regular noun, such as "1 device" and "8 devices"."""
    ending = "es" if unit.endswith(("s", "ch")) else "s"
    return f"{number:,} {unit}{'' if number == 1 else ending}"


def format_facts(facts: Mapping[str, Sequence[str]], indent: str = "") -> str:
    """Returns a line for each fact, behind a column with the labels, each label once."""
    width = max(_LABEL_COLUMNS, *map(len, facts))
    return "\n".join(
        f"{indent}{'' if index else label:<{width}} {text}"
        for label, texts in facts.items()
        for index, text in enumerate(texts)
    )


def format_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields rows as lines with columns of one width, the first one flush left."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def _text(cell: str | float | None) -> str:
    if cell is None or isinstance(cell, str):
        return "-" if cell is None else cell
    return f"{cell:,}" if isinstance(cell, int) else format_number(cell, EVAL_DIGITS)


def wrap(text: str, columns: int) -> str:
    """Returns lines of at most so many columns; what hangs over stands below the line's text.

    The text of a line begins after its indentation, or after a label and two spaces or more.
    Long words, such as paths, stay whole.
    """
    lines = []
    for line in text.splitlines():
        column = re.match(r" *(?:\S+(?: \S+)?  +)?", line)
        indent = " " * (column.end() if column and column.end() < columns / 2 else 2)
        lines += textwrap.wrap(
            line,
            columns,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        ) or [""]
    return "\n".join(lines)
