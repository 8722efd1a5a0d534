"""Samples that a run leaves out: ranges of positions in the order of its data.

A range leaves out samples START to END, both included. Those after it move up, so that batches stay
full and step numbers go on. Samples before a range stay where they are: a range can be added when a
run goes on, as long as the run has not come to it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Self

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.contract import Batch, DataConfig, TrainingData

_END = 2**55
"""Number of samples that no run comes to: 2**31 steps of 2**24 samples."""
Ranges = tuple[tuple[int, int], ...]
"""The first and the last position of each range, in order."""


def parse_ranges(texts: Sequence[str], flag: str) -> Ranges:
    """Returns ranges such as "100-199" in order; InputError where one is none or two overlap."""
    ranges: list[tuple[int, int]] = []
    for text in texts:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.replace("_", "").strip())
        if not found:
            raise InputError(f"{flag}={text}: write START-END, such as 100-199, or one number")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise InputError(f"{flag}={text}: runs backwards; write {last}-{first}")
        if last >= _END:
            raise InputError(f"{flag}={text}: no run comes that far; {_END - 1} is the last number")
        ranges.append((first, last))
    ranges.sort()
    for (first, last), (start, end) in pairwise(ranges):
        if start <= last:
            raise InputError(f"{flag}: {first}-{last} and {start}-{end} overlap")
    return tuple(ranges)


def positions(samples: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Returns the positions in the order of the data of samples of a run, int64 of the same shape.

    Sample k is at the k-th position that is in no range, counted from 0.
    """
    found, shift = np.asarray(samples, np.int64), 0
    for first, last in ranges:
        found = np.where(samples >= first - shift, found + (last - first + 1), found)
        shift += last - first + 1
    return found


def sample_at(position: int, ranges: Ranges) -> int | None:
    """Returns the sample of a run that is at a position; None where it is left out."""
    shift = 0
    for first, last in ranges:
        if first <= position <= last:
            return None
        shift += last - first + 1 if last < position else 0
    return position - shift


def joined(ranges: Ranges, others: Ranges) -> Ranges:
    """Returns ranges that leave out what either leave out."""
    found: list[tuple[int, int]] = []
    for first, last in sorted((*ranges, *others)):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def num_positions(num_samples: int, ranges: Ranges) -> int:
    """Returns the number of positions that the first samples of a run come past."""
    return int(positions(np.array(num_samples - 1), ranges)) + 1 if num_samples else 0


def before(ranges: Ranges, num_samples: int) -> Ranges:
    """Returns what ranges leave out among the positions of the first samples of a run."""
    end = num_positions(num_samples, ranges)
    return tuple(pair for pair in ranges if pair[0] < end)


def unreached(data: TrainingData, num_samples: int) -> list[str]:
    """Returns a line about the ranges that the first samples of a run do not come to, if any."""
    _, ranges = unskipped(data)
    beyond = ranges[len(before(ranges, num_samples)) :]
    end = num_positions(num_samples, ranges)
    after = f"the run ends before that, with sample {end - 1} of the data"
    return [f"data.skip={describe(beyond)} leaves nothing out: {after}"] if beyond else []


def describe(ranges: Ranges) -> str:
    """Returns ranges as they are given."""
    return ",".join(f"{first}-{last}" for first, last in ranges)


@dataclass(frozen=True, kw_only=True)
class Skipping(TrainingData):
    """Training data without some of its samples."""

    inner: TrainingData
    ranges: Ranges

    @classmethod
    def of(cls, data: TrainingData, ranges: Ranges) -> TrainingData | Self:
        """Returns the data without the ranges; itself where there are none."""
        if not ranges:
            return data
        same = {field.name: getattr(data, field.name) for field in fields(TrainingData)}
        return cls(**same, inner=data, ranges=ranges)

    def batch(self, samples: np.ndarray) -> Batch:
        """Returns the rows of the run's samples, int64 [n]."""
        return self.inner.batch(positions(samples, self.ranges))

    def describe(self) -> str:
        """Returns one line for the start of a run."""
        return f"{self.inner.describe()}; samples {describe(self.ranges)} are left out"

    def epochs(self, num_samples: int) -> dict[str, float]:
        """Returns the metrics of the passes over the data in the first samples of the run."""
        return self.inner.epochs(num_positions(num_samples, self.ranges))

    def report(self) -> list[str]:
        """Returns warnings about what reading has found since the last call."""
        return self.inner.report()


def open_training(config: DataConfig, *, seed: int, limits: Mapping[str, int]) -> TrainingData:
    """Opens the training data of a config without the samples that it leaves out.

    InputError: as `DataConfig.open`, or the ranges are none.
    """
    data = config.open(seed=seed, limits=limits)
    return Skipping.of(data, parse_ranges(config.skip, "data.skip"))


def unskipped(data: TrainingData) -> tuple[TrainingData, Ranges]:
    """Returns data with all its samples, and the ranges that are left out of it."""
    return (data.inner, data.ranges) if isinstance(data, Skipping) else (data, ())
