"""Long curves as few points that keep what a reader looks for."""

import numpy as np

from jaxpretrain.diagnosis.history import Series
from jaxpretrain.storage.jsonl import rounded

POINTS = 3000
"""The largest number of points of a curve, for all runs of a page together."""


def extremes(series: Series, points: int = POINTS) -> Series:
    """Returns about `points` rows: the lowest and the highest of each stretch, and the ends."""
    known = series.finite
    if len(known) <= points:
        return known
    edges = np.linspace(0, len(known), points // 2).astype(int)[:-1]
    lowest = _positions(known.values, edges)
    highest = _positions(-known.values, edges)
    return known[np.unique(np.r_[0, lowest, highest, len(known) - 1])]


def smoothed(series: Series, points: int = 300) -> Series:
    """Returns means over stretches that grow with the step, because curves flatten."""
    known = series.finite
    if len(known) < 8:
        return known
    edges = np.unique(np.geomspace(1, len(known), min(points, len(known) // 2)).astype(int)) - 1
    edges = np.unique(np.r_[edges[edges < len(known) - 8], len(known)])
    if len(edges) < 3:
        return known
    starts, counts = edges[:-1], np.diff(edges)

    def mean(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x[starts[0] :], starts - starts[0]) / counts

    return Series(mean(known.steps).round().astype(np.int64), mean(known.times), mean(known.values))


def numbers(values: np.ndarray) -> list[float | None]:
    """Returns values for JSON, with five digits; NaN becomes null."""
    if values.dtype.kind in "iu":
        return values.tolist()
    return [rounded(value, 5) for value in values.tolist()]


def _positions(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the positions of the lowest values of the stretches that begin at `starts`."""
    lowest = np.minimum.reduceat(values, starts)
    stretch = np.searchsorted(starts, np.arange(len(values)), side="right") - 1
    hits = np.flatnonzero(values == lowest[stretch])
    return hits[np.unique(stretch[hits], return_index=True)[1]]
