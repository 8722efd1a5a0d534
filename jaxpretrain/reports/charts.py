"""The charts of a report, as Plotly figures: plain dicts of traces and layout.

A colour stands for a run or, in a report of one run, for a set or task. Colours are indices here;
the page has the colours of its theme. Names from files are escaped: Plotly reads some HTML.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from jaxpretrain.diagnosis.history import EMPTY, History, Series
from jaxpretrain.diagnosis.metric_names import evaluation_sets, standard_error, task_metrics
from jaxpretrain.reports.points import POINTS, extremes, numbers, smoothed
from jaxpretrain.reports.runs import Run

Json = dict[str, Any]
"""A trace, a layout or another part of a figure."""
CLIPPING_WINDOW = 100
"""The number of reports over which the share of clipped gradients is counted."""
_RAW = {"opacity": 0.3, "width": 1, "hoverinfo": "skip"}
_ELSEWHERE = ("time/", "perf/", "run/", "eval/", "signals/")
_SHADES = {"warmup": 0, "stable": 1, "decay": 2, "tail": 3, "zero": 1}
_PERF = {
    "mfu": ("Model FLOPs utilisation", ".0%"),
    "mfu_full_attention": ("Model FLOPs utilisation, all pairs of attention counted", ".0%"),
    "data_wait_fraction": ("Time spent waiting for data", ".0%"),
}


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


def line(
    name: str, series: Series, color: int, *, axis: str = "y", points: int = POINTS, **style: Any
) -> Json:
    """Returns the trace of a curve over steps."""
    shown = extremes(series, points)
    return {
        "type": "scatter",
        "mode": "lines" if len(shown) > 40 else "lines+markers",
        "name": escape(name),
        "x": numbers(shown.steps),
        "y": numbers(shown.values),
        "yaxis": axis,
        "color": color,
        **style,
    }


def _noisy(name: str, series: Series, color: int, points: int) -> list[Json]:
    """Returns the traces of a curve; a curve with too many rows is smoothed over its extremes."""
    if len(series) <= points:
        return [line(name, series, color, points=points)]
    raw = line(name, series, color, points=points, showlegend=False, **_RAW)
    return [raw, line(name, smoothed(series), color, width=2)]


def loss_chart(runs: Sequence[Run]) -> Chart:
    """Returns the chart of the training and validation losses, with the learning rate below."""
    traces: list[Json] = []
    points = POINTS // len(runs)
    for color, run in enumerate(runs):
        prefix = f"{run.name} " if len(runs) > 1 else ""
        loss = run.history["train/loss"]
        raw = {"points": points, "showlegend": len(runs) == 1, **_RAW}
        traces.append(line(f"{prefix}training", loss, color, **raw))
        traces.append(line(f"{prefix}training, smoothed", smoothed(loss), color, width=2))
        for number, name in enumerate(evaluation_sets(run.history), start=1):
            curve = run.history[f"eval/{name}/loss"]
            own = color if len(runs) > 1 else number
            traces.append(line(f"{prefix}{name}", curve, own, points=points, mode="lines+markers"))
        rate, below = run.history["train/learning_rate"], {"axis": "y2", "showlegend": False}
        traces.append(line(f"{prefix}learning rate", rate, color, points=600, **below))
    layout = {
        "height": 520,
        "yaxis": {"domain": [0.3, 1], "title": {"text": "loss"}},
        "yaxis2": {"domain": [0, 0.22], "title": {"text": "learning rate"}, "exponentformat": "e"},
        "xaxis": {"anchor": "y2"},
        "shapes": _phases(runs[0]) + _marks(runs),
        "annotations": _phase_names(runs[0]),
    }
    note = "Raw curves show the lowest and the highest value of each stretch: no spike is hidden."
    signals = ("train/loss", "train/learning_rate")
    return Chart("loss", "Loss and learning rate", traces, layout, signals, note)


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Returns all charts for which the runs have data."""
    validation = [
        _simple(runs, f"validation_{key}", title, f"eval/*/{key}", sets=True)
        for key, title in (("perplexity", "Perplexity"), ("bits_per_byte", "Bits per byte"))
    ]
    made = [loss_chart(runs), *validation, *_tasks(runs), *_gradients(runs), *_speed(runs)]
    shown = {signal for chart in made for signal in chart.signals}
    return [chart for chart in [*made, *_others(runs, shown)] if chart.traces]


def _simple(
    runs: Sequence[Run], key: str, title: str, pattern: str, *, sets: bool = False, tick: str = ""
) -> Chart:
    """Returns the chart of a metric of all runs, or of all validation sets for `eval/*/name`."""
    traces, signals = [], []
    for color, run in enumerate(runs):
        names = [pattern]
        if sets:
            suffix = pattern.rpartition("*")[2]
            names = [f"eval/{s}{suffix}" for s in evaluation_sets(run.history)]
        for number, name in enumerate(n for n in names if len(run.history[n].finite)):
            own = color if len(runs) > 1 else number
            label = _label(run, runs, name.split("/")[1] if sets else title)
            traces += _noisy(label, run.history[name], own, POINTS // len(runs))
            signals.append(name)
    layout: Json = {"yaxis": {"tickformat": tick, "rangemode": "tozero"}} if tick else {}
    return Chart(key, title, traces, layout, tuple(dict.fromkeys(signals)))


def _label(run: Run, runs: Sequence[Run], name: str) -> str:
    return f"{run.name} {name}" if len(runs) > 1 else name


def _tasks(runs: Sequence[Run]) -> list[Chart]:
    """Returns charts of the mean of each metric, and of each task with its standard error."""
    names = list(dict.fromkeys(name for run in runs for name in task_metrics(run.history)))
    made = []
    for metric in dict.fromkeys(name.rpartition("/")[2] for name in names):
        same = [name for name in names if name.endswith(f"/{metric}")]
        if len(same) > 1:
            traces = [
                line(run.name if len(runs) > 1 else "mean", _mean(run.history, same), color)
                for color, run in enumerate(runs)
            ]
            title = f"Mean of {len(same)} tasks: {metric}"
            made.append(Chart(f"mean_{metric}", title, traces, {}))
    for name in names:
        traces = []
        for color, run in enumerate(runs):
            curve, errors = run.history[name].finite, run.history[standard_error(name)].finite
            trace = line(_label(run, runs, name.split("/")[1]), curve, color)
            if len(errors) == len(curve) <= len(trace["x"]):
                trace["error_y"] = {"array": numbers(errors.values), "thickness": 1, "width": 2}
            traces.append(trace)
        task, metric = name.removeprefix("eval/").rsplit("/", 1)
        layout, note = {}, "Bars are one standard error."
        for level_name, what in (
            (f"eval/{task}/random", "guessing"),
            (f"{name}_random_init", "an encoder that has learnt nothing"),
        ):
            if (level := runs[0].history.last(level_name)) is not None:
                layout = {"shapes": [_level(level)]}
                note += f" Dotted: {what}."
        key, title = f"task_{len(made)}", f"{task}: {metric}"
        made.append(Chart(key, title, traces, layout, (name,), note))
    return made


def _mean(history: History, names: Iterable[str]) -> Series:
    """Returns the mean of metrics at the steps that all of them have."""
    curves = [history[name].finite for name in names if len(history[name].finite)]
    steps = curves[0].steps if curves else np.zeros(0, np.int64)
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    rows = [curve[np.isin(curve.steps, steps)] for curve in curves]
    if not len(steps) or any(len(row) != len(steps) for row in rows):
        return EMPTY
    return Series(steps, rows[0].times, np.mean([row.values for row in rows], axis=0))


def _gradients(runs: Sequence[Run]) -> list[Chart]:
    norm = _simple(runs, "grad_norm", "Gradient norm, before clipping", "train/grad_norm")
    limits = [run.plan.clip_norm for run in runs if run.plan.clip_norm is not None]
    norm.layout.update({"yaxis": {"type": "log"}, "shapes": [_level(x) for x in set(limits)]})
    clipped, ratio = [], []
    for color, run in enumerate(runs):
        label = run.name if len(runs) > 1 else "run"
        norms = run.history["train/grad_norm"].finite
        if run.plan.clip_norm is not None and len(norms) > CLIPPING_WINDOW:
            window = np.ones(CLIPPING_WINDOW) / CLIPPING_WINDOW
            share = np.convolve(norms.values > run.plan.clip_norm, window, "valid")
            late = norms[CLIPPING_WINDOW - 1 :]
            clipped.append(line(label, Series(late.steps, late.times, share), color))
        updates, params = (run.history[f"train/{n}_norm"] for n in ("update", "param"))
        if len(updates) and len(updates) == len(params):
            values = updates.values / np.maximum(params.values, 1e-30)
            ratio.append(line(label, Series(updates.steps, updates.times, values), color))
    title = f"Clipped gradients, of {CLIPPING_WINDOW} reports"
    share_axis = {"yaxis": {"tickformat": ".0%", "range": [0, 1]}}
    ratio_axis = {"yaxis": {"type": "log", "exponentformat": "e"}}
    signals = ("train/update_norm", "train/param_norm")
    return [
        norm,
        Chart("clipped", title, clipped, share_axis),
        Chart("update_ratio", "Update norm / weight norm", ratio, ratio_axis, signals),
    ]


def _speed(runs: Sequence[Run]) -> list[Chart]:
    names = list(dict.fromkeys(n for run in runs for n in run.history.names("perf/")))
    made = []
    for name in names:
        short = name.removeprefix("perf/")
        if short == "eta_seconds":
            continue
        title, tick = _PERF.get(short, (short.replace("_", " ").capitalize(), ""))
        made.append(_simple(runs, f"perf_{len(made)}", title, name, tick=tick))
    return made


def _others(runs: Sequence[Run], shown: set[str]) -> list[Chart]:
    """Returns charts of all other metrics; a chart shows a family of similar names."""
    skipped = ("train/tokens", "train/images", "train/weight", "train/perplexity")
    families: dict[str, list[str]] = {}
    for name in dict.fromkeys(n for run in runs for n in run.history.names()):
        if name in shown or name in skipped or name.startswith(_ELSEWHERE):
            continue
        family, _, last = name.rpartition("/")
        key = f"{family}/*" if family.count("/") > 1 else f"*/{last}"
        families.setdefault(key, []).append(name)
    made = []
    for number, (family, names) in enumerate(sorted(families.items())):
        traces = [
            line(_label(run, runs, name), run.history[name], place, points=400)
            for run in runs
            for place, name in enumerate(names[:16])
        ]
        note = f"The first 16 of {len(names)}." if len(names) > 16 else ""
        title = names[0] if len(names) == 1 else family
        made.append(Chart(f"other_{number}", title, traces, {}, tuple(names), note))
    return made


def _level(value: float) -> Json:
    """Returns a dotted line at a height."""
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
        "line": {"dash": "dot", "width": 1, "color": "#888"},
    }  # fmt: skip


def _phases(run: Run) -> list[Json]:
    """Returns the phases of the learning rate as shades behind both curves."""
    return [
        {
            "type": "rect", "xref": "x", "yref": "paper", "x0": first, "x1": last, "y0": 0, "y1": 1,
            "layer": "below", "line": {"width": 0}, "shade": _SHADES.get(name, 0),
        }
        for name, first, last in _spans(run)
    ]  # fmt: skip


def _phase_names(run: Run) -> list[Json]:
    reached = max(run.history.step, 1)
    return [
        {
            "x": first, "y": 1, "yref": "paper", "text": escape(name), "showarrow": False,
            "xanchor": "left", "yanchor": "bottom", "font": {"size": 11},
        }
        for name, first, last in _spans(run)
        if last - first > 0.12 * reached
    ]  # fmt: skip


def _spans(run: Run) -> list[tuple[str, int, int]]:
    """Returns (name, first step, last step) of each phase that the run has reached."""
    reached = max(run.history.step, 1)
    phases = [*run.plan.phases, ("", run.plan.total_steps)]
    return [
        (name, first, min(end, reached))
        for (name, first), (_, end) in pairwise(phases)
        if first < reached
    ]


def _marks(runs: Sequence[Run]) -> list[Json]:
    """Returns dashed lines where sessions begin and red ones where something goes wrong."""
    resumed = [(step, "dash", "#888") for run in runs for step in run.history.resumed]
    wrong = [
        (finding.first, "dot", "#c0392b")
        for run in runs
        for finding in run.findings
        if finding.severity != "info"
    ]
    return [
        {
            "type": "line", "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1,
            "line": {"dash": dash, "width": 1, "color": color},
        }
        for step, dash, color in dict.fromkeys([*resumed, *wrong])
    ]  # fmt: skip
