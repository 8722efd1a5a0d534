"""The values that are varied: lists written with commas, and points that fill ranges evenly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxpretrain.config.errors import InputError

LOG_RATIO = 10.0
"""The ratio of the ends of a range beyond which its points are even on a log scale."""
_OPENING = {"[": "]", "(": ")", "{": "}"}
_TRIES = 32  # points that are drawn for each one that is wanted, where rounding makes some equal


def split_values(text: str) -> tuple[str, ...]:
    """Returns the values in a list with commas; those inside brackets and quotes part nothing.

    Quotes, square and round brackets around a value are taken off: `[0.9,0.95],[0.9,0.99]` are two
    values of a field that holds two numbers. ValueError: a value is empty, or a bracket or a quote
    is not closed.
    """
    values, start, closing = [], 0, []
    for place, letter in enumerate(text):
        if closing and letter == closing[-1]:
            closing.pop()
        elif closing[-1:] in (['"'], ["'"]):
            continue
        elif letter in _OPENING:
            closing.append(_OPENING[letter])
        elif letter in "\"'":
            closing.append(letter)
        elif letter == "," and not closing:
            values.append(text[start:place].strip())
            start = place + 1
    if closing:
        raise ValueError(f"{closing[-1]} is missing")
    values.append(text[start:].strip())
    if "" in values:
        raise ValueError("expected values with commas between them" if text else "has no value")
    return tuple(_bare(value) for value in values)


def _bare(value: str) -> str:
    return value[1:-1] if value[0] + value[-1] in ("[]", "()", '""', "''") and value[1:] else value


@dataclass(frozen=True)
class Range:
    """The numbers between two ends, even on a linear or a log scale."""

    low: float
    high: float
    scale: Literal["log", "linear"]

    def at(self, part: float) -> float:
        """Returns the number at a part of the way, from 0 to 1."""
        if self.scale == "log":
            return self.low * (self.high / self.low) ** part
        return self.low + (self.high - self.low) * part


def parse_range(text: str) -> Range:
    """Returns the range in `LOW..HIGH`, `LOW..HIGH:log` or `LOW..HIGH:linear`.

    Without a scale, it is a log scale where both ends are positive and more than ten times apart.
    ValueError: the text is no range, or no number lies in it.
    """
    ends, _, scale = text.partition(":")
    try:
        low, high = map(float, ends.split(".."))
    except ValueError:
        low = high = math.nan
    if scale not in ("", "log", "linear") or not math.isfinite(high - low):
        raise ValueError("expected LOW..HIGH, LOW..HIGH:log or LOW..HIGH:linear")
    if low >= high:
        raise ValueError("the range is empty: its lower end must be below the upper one")
    if scale == "log" and low <= 0:
        raise ValueError("a log scale needs positive ends")
    is_log = scale == "log" or (not scale and low > 0 and high > LOG_RATIO * low)
    return Range(low, high, "log" if is_log else "linear")


def fill(
    ranges: Mapping[str, Range], number: int, seed: int, whole: frozenset[str]
) -> list[tuple[tuple[str, str], ...]]:
    """Returns so many points, each a (path, text) for each range, that fill the ranges evenly.

    They are a scrambled Halton sequence: more points leave the first ones as they are. Numbers have
    three significant digits, and those of the paths in `whole` are whole.

    Raises:
      InputError: the ranges hold fewer whole numbers than that.
    """
    from scipy.stats import qmc  # takes half a second

    rows = qmc.Halton(len(ranges), rng=seed).random(number * _TRIES)
    points = [
        tuple(
            (path, f"{round(kept.at(part))}" if path in whole else f"{kept.at(part):.3g}")
            for (path, kept), part in zip(ranges.items(), row.tolist(), strict=True)
        )
        for row in rows
    ]
    different = list(dict.fromkeys(points))[:number]
    if len(different) < number:
        raise InputError(f"--random={number}: the ranges hold {len(different)} different points")
    return different
