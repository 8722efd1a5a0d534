"""The parts of charts: a figure with its heading, curves of few points, levels, first views."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from jaxpretrain.diagnosis.history import Series
from jaxpretrain.diagnosis.metric_names import standard_error_name
from jaxpretrain.reports.runs import Color, Group, RunHistory, shared
from jaxpretrain.storage.jsonl import rounded

Metric = str | Callable[[RunHistory], Series]
"""The name of a metric, or a function of a run to it."""
Json = dict[str, Any]
"""A trace, a layout or another part of a figure."""
POINTS = 3000
"""The largest number of points of a curve, for all runs of a page together."""
FIRST_PART = 0.05
"""The part of the steps that may lie outside of the first view of a chart."""
FLATTENED = 3.0
"""The height of all values, relative to those after the first part, that would flatten these."""
LOGARITHMIC = 30.0
"""The ratio of values above which their axis is logarithmic."""
_RAW = {"opacity": 0.3, "width": 1, "hoverinfo": "skip", "showlegend": False}
_SMOOTH_FROM = {"train/loss": 40}
_DASHES = {"solid": "Solid", "dot": "Dotted", "dash": "Dashed", "dashdot": "Dashes and dots"}


@dataclass(frozen=True)
class Chart:
    """A figure with its heading."""

    key: str
    """The id on the page."""
    title: str
    traces: list[Json]
    layout: Json
    signals: tuple[str, ...] = ()
    """The metrics that the chart shows."""
    note: str = ""
    """A sentence below the title."""

    @property
    def is_over_steps(self) -> bool:
        """True where the horizontal axis has steps, as it has without a title of its own."""
        return "title" not in self.layout.get("xaxis", {})


Section = str | list[Chart]
"""A part of a page: its HTML, or charts side by side."""


def line(name: str, series: Series, color: Color, points: int = POINTS, **style: Any) -> Json:
    """Returns the trace of a curve over steps."""
    shown = extremes(series, points)
    return {
        "type": "scatter",
        "mode": "lines" if len(shown) > 40 else "lines+markers",
        "name": escape(name),
        "x": numbers(shown.steps),
        "y": numbers(shown.values),
        "yaxis": "y",
        "color": color,
        **style,
    }


def chart(
    groups: Sequence[Group],
    key: str,
    heading: str,
    curves: Mapping[str, Metric],
    layout: Json | None = None,
    *,
    first_color: int = 0,
) -> Chart:
    """Returns the chart of metrics of groups, by the names of their curves.

    A colour stands for a group and a dash for a metric; of one group, a colour for a metric.
    """
    traces: list[Json] = []
    notes: list[str] = []
    for place, (name, metric) in enumerate(curves.items()):
        one = len(groups) == 1
        dash = [*_DASHES][place % len(_DASHES)]
        look: Json = {} if one else {"dash": dash, "showlegend": not place}
        notes += [] if one or not place else [f"{_DASHES[dash]}: {name}."]
        for group in groups:
            label = group.label(name if one or len(curves) > 1 else "")
            color = place + first_color if one else group.color
            traces += curve(group.runs, metric, label, color, POINTS // len(groups), **look)
    signals = tuple(metric for metric in curves.values() if isinstance(metric, str))
    return Chart(key, heading, traces, {**(layout or {})}, signals, " ".join(notes))


def curve(
    runs: Sequence[RunHistory], metric: Metric, label: str, color: Color, points: int, **look: Any
) -> list[Json]:
    """Returns the traces of a metric: the mean of runs over a band from the lowest to the highest.

    A curve of many rows is smoothed; that of a single run lies over its extremes, and that of a
    short one has its standard errors.
    """
    get = metric if callable(metric) else lambda run: run.history[metric]
    known = [series for run in runs if len(series := get(run).finite)]
    mean, values = shared(known)
    if not len(mean):
        return []
    if len(mean) <= _SMOOTH_FROM.get(str(metric), points):
        drawn, behind = line(label, mean, color, points, **look), []
        errors = runs[0].history[standard_error_name(str(metric))].finite
        if len(known) == 1 and len(errors) == len(mean):
            drawn["error_y"] = {"array": numbers(errors.values), "thickness": 1, "width": 2}
    else:
        thick = {"width": 2, "mode": "lines", **look}
        drawn = line(label, smoothed(mean), color, points, **thick)
        behind = [line(label, mean, color, points, **_RAW)] * (len(known) == 1)
    if len(known) > 1:
        ends = [Series(mean.steps, mean.times, end(values, axis=0)) for end in (np.min, np.max)]
        low, high = (smoothed(end) if "width" in drawn else extremes(end, points) for end in ends)
        band = {"fill": "toself", "band": True, "hoverinfo": "skip", "showlegend": False}
        behind = [line(label, low, color, mode="lines", **band)]
        for axis, column in (("x", high.steps), ("y", high.values)):
            behind[0][axis] += numbers(column[::-1])
    return [*behind, drawn]


def level(value: float, name: str) -> Json:
    """Returns a dotted line at a height, with its name."""
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
        "line": {"dash": "dot", "width": 1, "color": "#888"}, "name": escape(name),
        "label": {"text": escape(name), "textposition": "end", "font": {"size": 11}},
    }  # fmt: skip


def upright(step: float, dash: str, color: str) -> Json:
    """Returns a vertical line."""
    return {
        "type": "line", "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1,
        "line": {"dash": dash, "width": 1, "color": color},
    }  # fmt: skip


def framed(chart: Chart) -> Chart:
    """Returns a chart whose first view is not flattened by the values of the first steps."""
    axis = chart.layout.setdefault("yaxis", {})
    drawn = [trace for trace in chart.traces if trace["yaxis"] == "y"]
    rows = [(x, y) for t in drawn for x, y in zip(t["x"], t["y"], strict=True) if y is not None]
    steps, values = np.array(rows or [(0, 0)], float).T
    levels = [shape for shape in chart.layout.get("shapes", ()) if "label" in shape]
    for shape in levels:  # a label above the highest value would be cut off
        shape["label"]["yanchor"] = "top" if shape["y0"] >= values.max() else "bottom"
    late = values[steps > FIRST_PART * steps.max()]
    if axis.keys() & {"type", "range", "rangemode"} or len(late) < 2 or late.min() == late.max():
        return chart
    low, high = float(late.min()), float(late.max())
    if high > LOGARITHMIC * low > 0:
        axis["type"] = "log"
        return chart
    if float(values.max()) - float(values.min()) <= FLATTENED * (high - low):
        return chart
    near = [s["y0"] for s in levels if 2 * low - high <= s["y0"] <= 2 * high - low]
    low, high = min([low, *near]), max([high, *near])
    space = 0.05 * (high - low)
    axis["range"] = [low - space, high + space]
    note = f"{chart.note} The first steps lie outside; a double click shows them.".strip()
    return replace(chart, note=note)


def extremes(series: Series, points: int = POINTS) -> Series:
    """Returns about `points` rows: the lowest and the highest of each stretch, and the ends."""
    known = series.finite
    if len(known) <= points:
        return known
    edges = np.linspace(0, len(known), points // 2).astype(int)[:-1]
    stretches = np.split(known.values, edges[1:])
    lowest = edges + [stretch.argmin() for stretch in stretches]
    highest = edges + [stretch.argmax() for stretch in stretches]
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
    is_whole = values.dtype.kind in "iu"
    return values.tolist() if is_whole else [rounded(value, 5) for value in values.tolist()]
