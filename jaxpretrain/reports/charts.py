"""The charts of a report, as Plotly figures: plain dicts of traces and layout.

A colour stands for a group of runs or, in a report of one group, for a set or task. Colours are
places in the palette of the page's theme. Names from files are escaped: Plotly reads some HTML.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from itertools import pairwise

import numpy as np

from jaxpretrain.diagnosis.history import EMPTY, Series
from jaxpretrain.diagnosis.metric_names import evaluation_sets, task_metrics
from jaxpretrain.reports.curves import Chart, Json, chart, framed, level, line
from jaxpretrain.reports.groups import Group, grouped, named, shared
from jaxpretrain.reports.names import tick_format, title, words
from jaxpretrain.reports.runs import Run

CLIPPING_WINDOW = 100
"""The number of reports over which the share of clipped gradients is counted."""
MOST_OF_FAMILY = 16
"""The largest number of metrics in a chart of similar ones."""
_ELSEWHERE = ("time/", "perf/", "run/", "eval/", "signals/")
_SKIPPED = ("train/tokens", "train/images", "train/weight", "train/perplexity")
_SHADES = {"warmup": 0, "stable": 1, "decay": 2, "tail": 3, "zero": 1}
_SESSION, _WRONG = "#888888", "#c0392b"
_LOG = {"yaxis": {"type": "log"}}


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Returns all charts for which the runs have data."""
    groups = grouped(runs)
    made = [loss_chart(groups, runs), *_validation(groups, runs), *_tasks(groups, runs)]
    made += [*_gradients(groups, runs), *_speed(groups, runs)]
    shown = {signal for chart in made for signal in chart.signals}
    return [framed(c) for c in [*made, *_others(groups, runs, shown)] if c.traces]


def loss_chart(groups: Sequence[Group], runs: Sequence[Run]) -> Chart:
    """Returns the chart of the training and validation losses, with the learning rate below."""
    sets = {f"validation on {s}": f"eval/{s}/loss" for s in named(runs, evaluation_sets)}
    has_same_phases = len({str(run.plan.phases) for run in runs}) == 1
    spans = _spans(runs[0]) if has_same_phases else []
    layout = {
        "height": 520,
        "yaxis": {"domain": [0.32, 1], "title": {"text": "loss"}},
        "yaxis2": {"domain": [0, 0.22], "title": {"text": "learning rate"}, "rangemode": "tozero"},
        "xaxis": {"anchor": "y2"},
        "shapes": [*_phases(spans), *_marks(runs), *_baselines(runs, "loss")],
        "annotations": _phase_names(spans),
    }
    losses = {"training": "train/loss", **sets}
    made = chart(groups, "loss", "Loss and learning rate", losses, layout)
    for group in groups:
        rate = group.runs[0].history["train/learning_rate"]
        below = {"axis": "y2", "showlegend": False, "points": 600}
        made.traces.append(line(group.label("learning rate"), rate, group.color, **below))
    notes = {
        "Pale curves show the lowest and the highest value of each stretch.": "opacity",
        "Lines are means over equal configs; bands reach from lowest to highest.": "band",
    }
    said = [made.note] * bool(made.note)
    said += [text for text, key in notes.items() if any(key in trace for trace in made.traces)]
    colors = {shape["line"].get("color") for shape in layout["shapes"]}
    said += ["Dashed: a session begins."] * (_SESSION in colors)
    said += ["Red: a finding begins."] * (_WRONG in colors)
    return replace(made, note=" ".join(said), signals=(*made.signals, "train/learning_rate"))


def _validation(groups: Sequence[Group], runs: Sequence[Run]) -> list[Chart]:
    sets, made = named(runs, evaluation_sets), []
    for key in ("perplexity", "bits_per_byte"):
        metrics = {name: f"eval/{name}/{key}" for name in sets}
        known = {n: m for n, m in metrics.items() if any(len(r.history[m].finite) for r in runs)}
        where = f" on {', '.join(known)}" if len(known) == 1 else ""
        layout = {"shapes": _baselines(runs, key)}
        heading = f"Validation{where}: {words(key)}"
        made.append(chart(groups, f"validation_{key}", heading, known, layout, first_color=1))
    return made


def _tasks(groups: Sequence[Group], runs: Sequence[Run]) -> list[Chart]:
    """Returns charts of the mean of each metric, and of each task with its standard error."""
    names, made = named(runs, task_metrics), []
    for metric in dict.fromkeys(name.rpartition("/")[2] for name in names):
        same = [name for name in names if name.endswith(f"/{metric}")]
        if len(same) > 1:
            heading = f"Mean of {len(same)} tasks: {words(metric)}"
            made.append(chart(groups, f"mean_{metric}", heading, {"mean": _mean_of(same)}))
    for name in names:
        task, metric = name.removeprefix("eval/").rsplit("/", 1)
        levels = [
            level(height, what)
            for level_name, what in (
                (f"eval/{task}/random", "guessing"),
                (f"{name}_random_init", "an encoder that has learnt nothing"),
            )
            if (height := runs[0].history.last(level_name)) is not None
        ]
        heading = f"{task}: {words(metric)}"
        one = chart(groups, f"task_{len(made)}", heading, {"": name}, {"shapes": levels})
        has_bars = any("error_y" in trace for trace in one.traces)
        made.append(replace(one, note="Bars are one standard error." if has_bars else ""))
    return made


def _mean_of(names: Sequence[str]) -> Callable[[Run], Series]:
    """Returns a function to the mean of metrics at the steps that all of them have."""
    return lambda run: shared([s for n in names if len(s := run.history[n].finite)])[0]


def _gradients(groups: Sequence[Group], runs: Sequence[Run]) -> list[Chart]:
    limits = sorted({limit for run in runs if (limit := run.plan.clip_norm) is not None})
    levels = {"shapes": [level(limit, "clipped above") for limit in limits]}
    heading = f"Clipped gradients, share of {CLIPPING_WINDOW} reports"
    share = {"yaxis": {"tickformat": ".0%", "range": [-0.02, 1.02]}}
    norm = {"": "train/grad_norm"}
    ratio = chart(groups, "update_ratio", "Update norm / weight norm", {"": _update_ratio}, _LOG)
    return [
        chart(groups, "grad_norm", "Gradient norm, before clipping", norm, _LOG | levels),
        chart(groups, "clipped", heading, {"": _clipped_share}, share),
        replace(ratio, signals=("train/update_norm", "train/param_norm")),
    ]


def _clipped_share(run: Run) -> Series:
    """Returns the share of clipped gradients over the latest reports."""
    norms, limit = run.history["train/grad_norm"].finite, run.plan.clip_norm
    if limit is None or len(norms) <= CLIPPING_WINDOW:
        return EMPTY
    window = np.ones(CLIPPING_WINDOW) / CLIPPING_WINDOW
    late = norms[CLIPPING_WINDOW - 1 :]
    return Series(late.steps, late.times, np.convolve(norms.values > limit, window, "valid"))


def _update_ratio(run: Run) -> Series:
    updates, params = (run.history[f"train/{n}_norm"] for n in ("update", "param"))
    if len(updates) != len(params):
        return EMPTY
    return Series(updates.steps, updates.times, updates.values / np.maximum(params.values, 1e-30))


def _speed(groups: Sequence[Group], runs: Sequence[Run]) -> list[Chart]:
    names = [n for n in named(runs, lambda h: h.names("perf/")) if n != "perf/eta_seconds"]
    made = []
    for name in names:
        tick = tick_format(name)
        layout = {"yaxis": {"tickformat": tick, "rangemode": "tozero"}} if tick else {}
        made.append(chart(groups, f"perf_{len(made)}", title(name), {"": name}, layout))
    return made


def _others(groups: Sequence[Group], runs: Sequence[Run], shown: set[str]) -> list[Chart]:
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
    made = []
    for number, (heading, names) in enumerate(sorted(families.items())):
        first = dict([*names.items()][:MOST_OF_FAMILY])
        heading = title(*names.values()) if len(names) == 1 else heading
        one = chart(groups, f"other_{number}", heading, first)
        more = f" The first {len(first)} of {len(names)}." if len(names) > len(first) else ""
        made.append(replace(one, signals=tuple(names.values()), note=(one.note + more).strip()))
    return made


def _baselines(runs: Sequence[Run], metric: str) -> list[Json]:
    """Returns the lines of the baselines of the data."""
    levels = dict.fromkeys(item for run in runs for item in run.baselines(metric).items())
    return [level(value, name) for name, value in levels]


Spans = list[tuple[str, int, int]]
"""The name, the first and the last step of each phase."""


def _phases(spans: Spans) -> list[Json]:
    """Returns the phases of the learning rate as shades behind both curves."""
    return [
        {
            "type": "rect", "xref": "x", "yref": "paper", "x0": first, "x1": last, "y0": 0, "y1": 1,
            "layer": "below", "line": {"width": 0}, "shade": _SHADES.get(name, 0),
        }
        for name, first, last in spans
    ]  # fmt: skip


def _phase_names(spans: Spans) -> list[Json]:
    """Returns the names of the phases, between the panel of the loss and that of the rate."""
    return [
        {
            "x": first, "y": 0.285 - 0.035 * (place % 2), "yref": "paper", "text": escape(name),
            "showarrow": False, "xanchor": "left", "yanchor": "middle", "font": {"size": 11},
        }
        for place, (name, first, last) in enumerate(spans)
        if last - first > 0.12 * spans[-1][2]
    ]  # fmt: skip


def _spans(run: Run) -> Spans:
    """Returns the phases that the run has reached."""
    reached = max(run.history.step, 1)
    phases = [*run.plan.phases, ("", run.plan.total_steps)]
    return [
        (name, first, min(end, reached))
        for (name, first), (_, end) in pairwise(phases)
        if first < reached
    ]


def _marks(runs: Sequence[Run]) -> list[Json]:
    """Returns lines where the sessions of a single run begin and where something goes wrong."""
    if len(runs) > 1:
        return []
    wrong = [finding.first for finding in runs[0].findings if finding.severity != "info"]
    marks = [(step, "dash", _SESSION) for step in runs[0].history.resumed]
    return [
        {
            "type": "line", "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1,
            "line": {"dash": dash, "width": 1, "color": color},
        }
        for step, dash, color in dict.fromkeys([*marks, *((s, "dot", _WRONG) for s in wrong)])
    ]  # fmt: skip
