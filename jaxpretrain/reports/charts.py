"""The charts of a report, as Plotly figures: plain dicts of traces and layout.

Names from files are escaped: Plotly reads some HTML.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from itertools import pairwise

import numpy as np

from jaxpretrain.diagnosis.clock import PARTS
from jaxpretrain.diagnosis.history import EMPTY, Series
from jaxpretrain.diagnosis.metric_names import evaluation_sets, task_metric_names
from jaxpretrain.models.stack import STACK, tower_of
from jaxpretrain.reports.curves import Chart, Json, chart, framed, level, line, numbers, upright
from jaxpretrain.reports.runs import Group, RunHistory, grouped, named, shared
from jaxpretrain.reports.words import tick_format, title, words

CLIPPING_WINDOW = 100
"""The number of reports over which the share of clipped gradients is counted."""
MOST_OF_FAMILY = 16
"""The largest number of metrics in a chart of similar ones."""
COLUMNS = 200
"""The largest number of steps of a map, or of those of all runs together."""
_SIGNALS = {
    "grad_norm": "Gradient norm",
    "param_norm": "Weight norm",
    "update_ratio": "Update norm / weight norm",
    "attention_logit": "Largest attention logit",
    "activation_rms": "Root mean square of activations",
}
_ELSEWHERE = ("time/", "perf/", "run/", "eval/", "signals/")
_SKIPPED = ("train/tokens", "train/images", "train/weight", "train/perplexity")
_SHADES = {"warmup": 0, "stable": 1, "decay": 2, "tail": 3, "zero": 1}
_SESSION, _WRONG = "#888888", "#c0392b"
_PART_NAMES = {"data_wait": "waiting for data", "eval": "evaluation", "save": "saving"}
_NOTES = {
    "opacity": "Pale curves show the lowest and the highest value of each stretch.",
    "band": "Lines are means over equal configs; bands reach from lowest to highest.",
    _SESSION: "Dashed: a session begins.",
    _WRONG: "Red: a finding begins.",
}
_LOG = {"yaxis": {"type": "log"}}


def charts(runs: Sequence[RunHistory]) -> list[Chart]:
    """Returns all charts for which the runs have data."""
    groups = grouped(runs)
    made = [loss_chart(groups, runs), *_validation(groups, runs), *_tasks(groups, runs)]
    made += [*_gradients(groups, runs), *_speed(groups, runs)]
    shown = {signal for chart in made for signal in chart.signals}
    return [framed(c) for c in [*made, *_others(groups, runs, shown)] if c.traces]


def loss_chart(groups: Sequence[Group], runs: Sequence[RunHistory]) -> Chart:
    """Returns the chart of the training and validation losses, with the learning rate below."""
    sets = {f"validation on {s}": f"eval/{s}/loss" for s in named(runs, evaluation_sets)}
    has_same_phases = len({str(run.plan.phases) for run in runs}) == 1
    shades, phases = _phases(runs[0]) if has_same_phases else ([], [])
    layout = {
        "height": 520,
        "yaxis": {"domain": [0.32, 1], "title": {"text": "loss"}},
        "yaxis2": {"domain": [0, 0.22], "title": {"text": "learning rate"}, "rangemode": "tozero"},
        "xaxis": {"anchor": "y2"},
        "shapes": [*shades, *_marks(runs), *_baselines(runs, "loss")],
        "annotations": phases,
    }
    losses = {"training": "train/loss", **sets}
    made = chart(groups, "loss", "Loss and learning rate", losses, layout)
    for group in groups:
        rate = group.runs[0].history["train/learning_rate"]
        below = {"yaxis": "y2", "showlegend": False, "points": 600}
        made.traces.append(line(group.label("learning rate"), rate, group.color, **below))
    drawn = {key for trace in made.traces for key in trace}
    drawn |= {shape["line"].get("color") for shape in layout["shapes"]}
    said = filter(None, [made.note, *(note for key, note in _NOTES.items() if key in drawn)])
    return replace(made, note=" ".join(said), signals=(*made.signals, "train/learning_rate"))


def _validation(groups: Sequence[Group], runs: Sequence[RunHistory]) -> Iterator[Chart]:
    for key in ("perplexity", "bits_per_byte"):
        metrics = {name: f"eval/{name}/{key}" for name in named(runs, evaluation_sets)}
        known = {n: m for n, m in metrics.items() if any(len(r.history[m].finite) for r in runs)}
        where = f" on {', '.join(known)}" if len(known) == 1 else ""
        # Plotly alone would write 8000 beside 10k.
        layout = {"shapes": _baselines(runs, key), "yaxis": {"tickformat": ",.6~g"}}
        heading = f"Validation{where}: {words(key)}"
        yield chart(groups, f"validation_{key}", heading, known, layout, first_color=1)


def _tasks(groups: Sequence[Group], runs: Sequence[RunHistory]) -> list[Chart]:
    """Returns charts of the mean of each metric, and of each task with its standard error."""
    names, made = named(runs, task_metric_names), []
    for metric in dict.fromkeys(name.rpartition("/")[2] for name in names):
        same = [name for name in names if name.endswith(f"/{metric}")]
        if len(same) > 1:
            heading = f"Mean of {len(same)} tasks: {words(metric)}"
            made.append(chart(groups, f"mean_{metric}", heading, {"mean": partial(_mean, same)}))
    for name in names:
        task, metric = name.removeprefix("eval/").rsplit("/", 1)
        levels = {
            "guessing": f"eval/{task}/random",
            "an encoder that has learnt nothing": f"{name}_random_init",
        }
        heights = {what: runs[0].history.last(name) for what, name in levels.items()}
        lines = [level(height, what) for what, height in heights.items() if height is not None]
        heading = f"{task}: {words(metric)}"
        one = chart(groups, f"task_{len(made)}", heading, {"": name}, {"shapes": lines})
        has_bars = any("error_y" in trace for trace in one.traces)
        made.append(replace(one, note="Bars are one standard error." if has_bars else ""))
    return made


def _mean(names: Sequence[str], run: RunHistory) -> Series:
    """Returns the mean of metrics at the steps that all of them have."""
    return shared([s for name in names if len(s := run.history[name].finite)])[0]


def _gradients(groups: Sequence[Group], runs: Sequence[RunHistory]) -> Iterator[Chart]:
    limits = sorted({limit for run in runs if (limit := run.plan.clip_norm) is not None})
    levels = {"shapes": [level(limit, "clipped above") for limit in limits]}
    heading = f"Clipped gradients, share of {CLIPPING_WINDOW} reports"
    share = {"yaxis": {"tickformat": ".0%", "range": [-0.02, 1.02]}}
    norm = {"": "train/grad_norm"}
    yield chart(groups, "grad_norm", "Gradient norm, before clipping", norm, _LOG | levels)
    yield chart(groups, "clipped", heading, {"": _clipped_share}, share)
    ratio = chart(groups, "update_ratio", "Update norm / weight norm", {"": _update_ratio}, _LOG)
    yield replace(ratio, signals=("train/update_norm", "train/param_norm"))


def _clipped_share(run: RunHistory) -> Series:
    """Returns the share of clipped gradients over the latest reports."""
    norms, limit = run.history["train/grad_norm"].finite, run.plan.clip_norm
    if limit is None or len(norms) <= CLIPPING_WINDOW:
        return EMPTY
    window = np.ones(CLIPPING_WINDOW) / CLIPPING_WINDOW
    late = norms[CLIPPING_WINDOW - 1 :]
    return Series(late.steps, late.times, np.convolve(norms.values > limit, window, "valid"))


def _update_ratio(run: RunHistory) -> Series:
    updates, params = (run.history[f"train/{n}_norm"] for n in ("update", "param"))
    if len(updates) != len(params):
        return EMPTY
    return Series(updates.steps, updates.times, updates.values / np.maximum(params.values, 1e-30))


def _speed(groups: Sequence[Group], runs: Sequence[RunHistory]) -> Iterator[Chart]:
    names = [n for n in named(runs, lambda h: h.names("perf/")) if n != "perf/eta_seconds"]
    for number, name in enumerate(names):
        axis = {"tickformat": tick_format(name), "rangemode": "tozero"}
        layout = {"yaxis": axis} if axis["tickformat"] else {}
        yield chart(groups, f"perf_{number}", title(name), {"": name}, layout)


def _others(
    groups: Sequence[Group], runs: Sequence[RunHistory], shown: set[str]
) -> Iterator[Chart]:
    """Returns charts of all other metrics; a chart shows a family of similar names."""
    families: dict[str, dict[str, str]] = {}
    for name in named(runs, lambda history: history.names()):
        if name in shown or name in _SKIPPED or name.startswith(_ELSEWHERE):
            continue
        folders, last = name.split("/")[1:-1], words(name)
        if len(folders) > 1:
            heading, label = " ".join(folders).replace("_", " "), last
        else:
            heading, label = f"{title(last)}, by source", "".join(folders)
        families.setdefault(heading, {})[label] = name
    for number, (heading, names) in enumerate(sorted(families.items())):
        first = dict([*names.items()][:MOST_OF_FAMILY])
        heading = title(*names.values()) if len(names) == 1 else heading
        one = chart(groups, f"other_{number}", heading, first)
        more = f" The first {len(first)} of {len(names)}." if len(names) > len(first) else ""
        yield replace(one, signals=tuple(names.values()), note=(one.note + more).strip())


def _baselines(runs: Sequence[RunHistory], metric: str) -> list[Json]:
    """Returns the lines of the baselines of the data."""
    levels = dict.fromkeys(item for run in runs for item in run.baselines(metric).items())
    return [level(value, name) for name, value in levels]


def _phases(run: RunHistory) -> tuple[list[Json], list[Json]]:
    """Returns the phases that a run has reached, as shades and as names between the panels."""
    reached = max(run.history.step, 1)
    phases = [*run.plan.phases, ("", run.plan.total_steps)]
    spans = [
        (name, first, min(end, reached))
        for (name, first), (_, end) in pairwise(phases)
        if first < reached
    ]
    shades = [
        {
            "type": "rect", "xref": "x", "yref": "paper", "x0": first, "x1": last, "y0": 0, "y1": 1,
            "layer": "below", "line": {"width": 0}, "shade": _SHADES.get(name, 0),
        }
        for name, first, last in spans
    ]  # fmt: skip
    names = [
        {
            "x": first, "y": 0.285 - 0.035 * (place % 2), "yref": "paper", "text": escape(name),
            "showarrow": False, "xanchor": "left", "yanchor": "middle", "font": {"size": 11},
        }
        for place, (name, first, last) in enumerate(spans)
        if last - first > 0.12 * spans[-1][2]
    ]  # fmt: skip
    return shades, names


def _marks(runs: Sequence[RunHistory]) -> list[Json]:
    """Returns lines where the sessions of a single run begin and where something goes wrong."""
    if len(runs) > 1:
        return []
    marks = [(step, "dash", _SESSION) for step in runs[0].history.resumed]
    marks += [(f.first, "dot", _WRONG) for f in runs[0].findings if f.severity != "info"]
    return [upright(*mark) for mark in dict.fromkeys(marks)]


def hours_chart(runs: Sequence[RunHistory]) -> Chart:
    """Returns the bars of the hours of each part of the time, one for each run."""
    hours: dict[str, list[float]] = {}
    for place, run in enumerate(runs):
        parts = {part: run.history.last(f"time/{part}_seconds") for part in PARTS}
        if run.goodput is not None:
            parts = {cause: spent for cause, spent in run.goodput.seconds.items()}
        elif any(seconds is not None for seconds in parts.values()):
            parts["lost to restarts"] = run.lost_seconds
        for part, seconds in parts.items():
            if seconds:
                bars = hours.setdefault(_PART_NAMES.get(part, part), [0.0] * len(runs))
                bars[place] = float(f"{seconds / 3600:.5g}")
    traces = [
        {
            "type": "bar", "orientation": "h", "name": name, "color": color, "x": spent,
            "y": [escape(run.name) for run in runs], "hovertemplate": "%{x:.3g} h",
        }
        for color, (name, spent) in enumerate(hours.items())
    ]  # fmt: skip
    layout = {
        "barmode": "stack", "height": 150 + 34 * len(runs), "hovermode": "closest",
        "margin": {"l": 10, "r": 14, "t": 30, "b": 40}, "legend": {"traceorder": "normal"},
        "xaxis": {"title": {"text": "hours spent"}},
        "yaxis": {"showticklabels": len(runs) > 1, "autorange": "reversed"},
    }  # fmt: skip
    return Chart("hours", "", traces, layout)


def layer_charts(run: RunHistory, prefix: str = "", columns: int = COLUMNS) -> list[Chart]:
    """Returns the charts of all signals of a run; `prefix` begins their keys."""
    maps, outside, groups = [], [], grouped([run])
    for quantity, what in _SIGNALS.items():
        signal = f"signals/{quantity}/"
        # Encoder before decoder.
        for name in sorted(run.history.names(signal, STACK), reverse=True):
            trace, layout = _map(run.history[name], columns)
            key = f"{prefix}layers_{len(maps)}"
            note = "Bottom layer below; colours are logarithmic."
            heading = f"{what} by {tower_of(name)} layer".replace("  ", " ")
            maps.append(Chart(key, heading, [trace], layout, (name,), note))
        curves = {  # of the embedding, the head and the norms
            re.sub("[/_]", " ", name.removeprefix(signal)): name
            for name in run.history.names(signal)
            if run.history[name].values.ndim == 1
        }
        key, heading = f"{prefix}outside_{quantity}", f"{what} outside of layers"
        outside.append(chart(groups, key, heading, curves, _LOG))
    return [chart for chart in [*maps, *outside] if chart.traces]


def _map(series: Series, columns: int) -> tuple[Json, Json]:
    """Returns the trace and the layout of a map: the largest value of each stretch, by layer."""
    starts = np.unique(np.linspace(0, len(series), columns + 1).astype(int)[:-1])
    highest = np.fmax.reduceat(series.values, starts, axis=0).T
    smallest = np.min(highest, where=highest > 0, initial=np.inf)
    powers = np.log10(np.maximum(highest, smallest))
    ticks = _ticks(float(np.nanmin(powers)), float(np.nanmax(powers)))
    trace = {
        "type": "heatmap",
        "x": numbers(series.steps[starts]),
        "z": [numbers(row) for row in powers],
        "customdata": [numbers(row) for row in highest],
        "colorscale": "Viridis",
        "colorbar": {
            "tickvals": [float(f"{np.log10(tick):.5g}") for tick in ticks],
            "ticktext": [f"{tick:.3g}" for tick in ticks],
            "thickness": 12,
            "outlinewidth": 0,
        },
        "hovertemplate": "step %{x:,}, layer %{y}: %{customdata:.3g}<extra></extra>",
    }
    height = min(160 + 14 * len(highest), 560)
    axis = {"dtick": max(1, len(highest) // 8), "showgrid": False}
    return trace, {"height": max(height, 240), "yaxis": axis, "hovermode": "closest"}


def _ticks(lowest: float, highest: float) -> list[float]:
    """Returns round numbers between two powers of ten; the ends where there are fewer than two."""
    if not np.isfinite(highest):
        return []
    digits = (1, 2, 5) if highest - lowest < 3 else (1,)
    powers = range(int(np.floor(lowest)), int(np.ceil(highest)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    inside = [tick for tick in ticks if lowest <= np.log10(tick) <= highest]
    return inside if len(inside) > 1 else [10**lowest, 10**highest]
