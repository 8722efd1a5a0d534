"""The charts of a report, as Plotly figures: plain dicts of traces and layout.

Colours stand for runs, or for sets and tasks where there is one run. They are indices here; the
page knows the colours of its theme. Names from files are escaped: Plotly reads some HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from jaxpretrain.diagnosis.history import History, Series
from jaxpretrain.diagnosis.metric_names import evaluation_sets, standard_error, task_metrics
from jaxpretrain.reports.points import POINTS, extremes, numbers, smoothed
from jaxpretrain.reports.runs import Run

Trace = dict[str, Any]
CLIPPING_WINDOW = 100
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
    """Its id on the page."""
    title: str
    note: str
    traces: list[Trace]
    layout: dict[str, Any]
    signals: tuple[str, ...] = ()
    """Metrics that it shows, or their beginnings."""


def line(
    name: str, series: Series, color: int, *, axis: str = "y", points: int = POINTS, **style: Any
) -> Trace:
    """A curve over steps."""
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


def _noisy(name: str, series: Series, color: int, points: int) -> list[Trace]:
    """A curve; one that has too many rows to show them all is smoothed, over its extremes."""
    if len(series) <= points:
        return [line(name, series, color, points=points)]
    raw = {"opacity": 0.3, "width": 1, "showlegend": False, "hoverinfo": "skip"}
    return [
        line(name, series, color, points=points, **raw),
        line(name, smoothed(series), color, width=2),
    ]


def loss_chart(runs: Sequence[Run]) -> Chart:
    """Training loss, raw and smoothed, validation loss, and the learning rate below."""
    traces: list[Trace] = []
    points = POINTS // len(runs)
    for color, run in enumerate(runs):
        prefix = f"{run.name} " if len(runs) > 1 else ""
        loss = run.history["train/loss"]
        raw = {"opacity": 0.3, "width": 1, "showlegend": len(runs) == 1, "hoverinfo": "skip"}
        traces.append(line(f"{prefix}training", loss, color, points=points, **raw))
        traces.append(line(f"{prefix}training, smoothed", smoothed(loss), color, width=2))
        for number, name in enumerate(evaluation_sets(run.history), start=1):
            curve = run.history[f"eval/{name}/loss"]
            own = color if len(runs) > 1 else number
            traces.append(line(f"{prefix}{name}", curve, own, points=points, mode="lines+markers"))
        rate = run.history["train/learning_rate"]
        traces.append(
            line(f"{prefix}learning rate", rate, color, axis="y2", points=600, showlegend=False)
        )
    layout = {
        "height": 520,
        "yaxis": {"domain": [0.3, 1], "title": {"text": "loss"}},
        "yaxis2": {"domain": [0, 0.22], "title": {"text": "learning rate"}, "exponentformat": "e"},
        "xaxis": {"anchor": "y2"},
        "shapes": _phases(runs[0]) + _marks(runs),
        "annotations": _phase_names(runs[0]),
    }
    note = (
        "By step. Raw curves show the lowest and the highest value of each stretch: no spike is "
        "hidden."
    )
    return Chart(
        "loss",
        "Loss and learning rate",
        note,
        traces,
        layout,
        ("train/loss", "train/learning_rate"),
    )


def charts(runs: Sequence[Run]) -> list[Chart]:
    """All charts that the runs have data for."""
    made = [loss_chart(runs), *_validation(runs), *_tasks(runs), *_gradients(runs), *_speed(runs)]
    shown = {signal for chart in made for signal in chart.signals}
    return [chart for chart in [*made, *_others(runs, shown)] if chart.traces]


def _validation(runs: Sequence[Run]) -> list[Chart]:
    titles = {"perplexity": "Perplexity", "bits_per_byte": "Bits per byte"}
    return [
        _simple(runs, f"validation_{key}", title, f"eval/*/{key}", sets=True)
        for key, title in titles.items()
    ]


def _simple(
    runs: Sequence[Run], key: str, title: str, pattern: str, *, sets: bool = False, tick: str = ""
) -> Chart:
    """One metric, of all runs; or of all validation sets, for `eval/*/name`."""
    traces, signals = [], []
    for color, run in enumerate(runs):
        names = [pattern]
        if sets:
            suffix = pattern.rpartition("*")[2]
            names = [f"eval/{s}{suffix}" for s in evaluation_sets(run.history)]
        for number, name in enumerate(n for n in names if len(run.history[n].finite)):
            own = color if len(runs) > 1 else number
            label = " ".join(_label(run, runs, name.split("/")[1] if sets else title))
            traces += _noisy(label, run.history[name], own, POINTS // len(runs))
            signals.append(name)
    layout: dict[str, Any] = {"yaxis": {"tickformat": tick, "rangemode": "tozero"}} if tick else {}
    return Chart(key, title, "", traces, layout, tuple(dict.fromkeys(signals)))


def _label(run: Run, runs: Sequence[Run], name: str) -> list[str]:
    return [run.name, name] if len(runs) > 1 else [name]


def _tasks(runs: Sequence[Run]) -> list[Chart]:
    """The mean of each metric, and each task with its standard error and its random level."""
    names = list(dict.fromkeys(name for run in runs for name in task_metrics(run.history)))
    made = []
    for metric in dict.fromkeys(name.rpartition("/")[2] for name in names):
        same = [name for name in names if name.endswith(f"/{metric}")]
        if len(same) > 1:
            traces = [
                line(run.name if len(runs) > 1 else "mean", _mean(run.history, same), color)
                for color, run in enumerate(runs)
            ]
            made.append(
                Chart(f"mean_{metric}", f"Mean of {len(same)} tasks: {metric}", "", traces, {})
            )
    for name in names:
        traces = []
        for color, run in enumerate(runs):
            curve, errors = run.history[name].finite, run.history[standard_error(name)].finite
            trace = line(" ".join(_label(run, runs, name.split("/")[1])), curve, color)
            if len(errors) == len(curve) <= len(trace["x"]):
                trace["error_y"] = {"array": numbers(errors.values), "thickness": 1, "width": 2}
            traces.append(trace)
        task, metric = name.removeprefix("eval/").rsplit("/", 1)
        layout, note = {}, "Bars are one standard error."
        for level_name, what in (
            (f"eval/{task}/random", "guessing"),
            (f"{name}_random_init", "an encoder that has learnt nothing"),
        ):
            if len(level := runs[0].history[level_name].finite):
                layout = {"shapes": [_level(float(level.values[-1]))]}
                note += f" Dotted: {what}."
        made.append(Chart(f"task_{len(made)}", f"{task}: {metric}", note, traces, layout, (name,)))
    return made


def _mean(history: History, names: Iterable[str]) -> Series:
    """The mean of metrics at the steps that all of them have."""
    curves = [history[name].finite for name in names if len(history[name].finite)]
    steps = curves[0].steps if curves else np.zeros(0, np.int64)
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    rows = [curve[np.isin(curve.steps, steps)] for curve in curves]
    if not len(steps) or any(len(row) != len(steps) for row in rows):
        return Series(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
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
            share = np.convolve(
                norms.values > run.plan.clip_norm,
                np.ones(CLIPPING_WINDOW) / CLIPPING_WINDOW,
                "valid",
            )
            late = norms[CLIPPING_WINDOW - 1 :]
            clipped.append(line(label, Series(late.steps, late.times, share), color))
        updates, params = (run.history[f"train/{n}_norm"] for n in ("update", "param"))
        if len(updates) and len(updates) == len(params):
            values = updates.values / np.maximum(params.values, 1e-30)
            ratio.append(line(label, Series(updates.steps, updates.times, values), color))
    return [
        norm,
        Chart(
            "clipped",
            f"Clipped gradients, of {CLIPPING_WINDOW} reports",
            "",
            clipped,
            {"yaxis": {"tickformat": ".0%", "range": [0, 1]}},
        ),
        Chart(
            "update_ratio",
            "Update norm / weight norm",
            "",
            ratio,
            {"yaxis": {"type": "log", "exponentformat": "e"}},
            ("train/update_norm", "train/param_norm"),
        ),
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
    """Whatever else was recorded, by what its names have in common; the widest family first."""
    skipped = ("train/tokens", "train/images", "train/weight", "train/perplexity")
    families: dict[str, list[str]] = {}
    for name in dict.fromkeys(n for run in runs for n in run.history.names()):
        if name in shown or name in skipped or name.startswith(_ELSEWHERE):
            continue
        family, _, last = name.rpartition("/")
        families.setdefault(f"{family}/*" if family.count("/") > 1 else f"*/{last}", []).append(
            name
        )
    made = []
    for number, (family, names) in enumerate(sorted(families.items())):
        traces = [
            line(" ".join(_label(run, runs, name)), run.history[name], place, points=400)
            for run in runs
            for place, name in enumerate(names[:16])
        ]
        note = f"The first 16 of {len(names)}." if len(names) > 16 else ""
        title = names[0] if len(names) == 1 else family
        made.append(Chart(f"other_{number}", title, note, traces, {}, tuple(names)))
    return made


def _level(value: float) -> dict[str, Any]:
    """A dotted line at a height."""
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
        "line": {"dash": "dot", "width": 1, "color": "#888"},
    }  # fmt: skip


def _phases(run: Run) -> list[dict[str, Any]]:
    """The phases of the learning rate as shades behind both curves."""
    return [
        {
            "type": "rect", "xref": "x", "yref": "paper", "x0": first, "x1": last, "y0": 0, "y1": 1,
            "layer": "below", "line": {"width": 0}, "shade": _SHADES.get(name, 0),
        }
        for name, first, last in _spans(run)
    ]  # fmt: skip


def _phase_names(run: Run) -> list[dict[str, Any]]:
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
    """(name, first step, last step) of the phases that the run has reached."""
    reached = max(run.history.step, 1)
    phases = [*run.plan.phases, ("", run.plan.total_steps)]
    return [
        (name, first, min(end, reached))
        for (name, first), (_, end) in pairwise(phases)
        if first < reached
    ]


def _marks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Dashed lines where sessions begin, red ones where something goes wrong."""
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
