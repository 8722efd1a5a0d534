"""The page about a sweep: question and answer, differences to the control, curves, cost.

It is made from `sweep.json`, which the command `sweep` writes, and from the folders of the runs.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config.serialize import Document, read_object
from jaxpretrain.display.wording import format_count, format_number
from jaxpretrain.reports.charts import charts
from jaxpretrain.reports.curves import Chart, Json
from jaxpretrain.reports.names import title
from jaxpretrain.reports.runs import METRICS, Run, read_run
from jaxpretrain.reports.words import table

FILE = "sweep.json"
MOST_CURVES = 24
"""The largest number of arms whose curves are drawn."""
MOST_FORESTS = 8
"""The largest number of metrics with a chart of differences."""
_ROW_HEIGHT = 26
_VERDICTS = {"better": 2, "worse": 1, "no_difference": 7}
"""Verdict -> the place of its colour in the palette."""


def sweep_sections(folder: Path) -> tuple[str, dict[str, str | list[Chart]]]:
    """Returns the top of the page, and its texts and charts by heading.

    Raises:
      InputError: a file of the sweep or of a run cannot be read.
    """
    document = read_object(folder / FILE)
    runs = _read_runs(folder, document)
    top = "".join(f"<p>{escape(line)}</p>" for line in document.get("answer", ()))
    is_done = all(run["state"] == "done" for run in _all_runs(document))
    kind = "good" if is_done else "warning"
    few = len(document["arms"]) <= MOST_CURVES
    return f'<div class="verdict {kind}">{top}</div>' * bool(top), {
        "Arms": _arms(document),
        "Differences to the control": _forests(document),
        "Varied values": _varied(document),
        "Curves": charts(list(runs.values())) if runs and few else [],
        "Loss against cost": _against_cost(document),
        "Cost": _cost(document),
        "What differs": _differences(document),
        "Runs": _runs(document, runs),
    }


def _all_runs(document: Document) -> list[Document]:
    return [run for arm in document["arms"] for run in arm["runs"]]


def _read_runs(folder: Path, document: Document) -> dict[str, Run]:
    """Returns the runs that have metrics, by their folders."""
    names = [run["folder"] for run in _all_runs(document)]
    return {
        name: read_run(folder / name, name) for name in names if (folder / name / METRICS).exists()
    }


def _metrics(document: Document) -> list[str]:
    """Returns the names of the metrics, that of the main one first."""
    names = dict.fromkeys(name for arm in document["arms"] for name in arm.get("metrics", {}))
    return sorted(names, key=lambda name: name != document.get("metric"))


def _arms(document: Document) -> str:
    """Returns the table of the main metric, and those of the others to unfold."""
    tables = {name: _arm_table(document, name) for name in _metrics(document)}
    if not tables:
        return "<p>No run has finished.</p>"
    first, *others = tables
    more = "".join(
        f"<details><summary>{escape(title(name))}</summary>{tables[name]}</details>"
        for name in others
    )
    note = (
        "<p class='soft'>Intervals are 95 % and not corrected for the number of arms; p is "
        "corrected by Holm's method, and the verdict follows it.</p>"
    )
    return f"<h3>{escape(title(first))}</h3>{tables[first]}{note}{more}"


def _arm_table(document: Document, metric: str) -> str:
    rows = []
    for arm in document["arms"]:
        found = arm["metrics"].get(metric)
        if found is None:
            continue
        cells = [format_number(found["mean"], 5), format_number(found["stderr"], 3)]
        cells.append(str(found["n"]))
        if arm["name"] == document["control"]:
            cells += ["", "", "", "control"]
        else:
            interval = f"{_signed(found['low'])} to {_signed(found['high'])}"
            known = found["p_holm"] is not None
            cells += [_signed(found["difference"]), interval if known else ""]
            cells.append(format_number(found["p_holm"], 2) if known else "")
            cells.append(found["verdict"].replace("_", " ") if known else "too few runs")
        rows.append([arm["name"], *cells])
    head = ["arm", "mean", "standard error", "runs", "difference", "interval", "p", "verdict"]
    return table(head, rows)


def _signed(value: float | None) -> str:
    if value is None:
        return ""
    return ("+" if value > 0 else "") + format_number(value, 3)


def _forests(document: Document) -> list[Chart]:
    """Returns a chart of the differences to the control for each metric."""
    return [
        chart
        for place, name in enumerate(_metrics(document)[:MOST_FORESTS])
        if (chart := _forest(document, name, f"forest_{place}")) is not None
    ]


def _forest(document: Document, metric: str, key: str) -> Chart | None:
    traces: list[Json] = []
    for verdict, color in _VERDICTS.items():
        shown = [
            (arm["name"], found)
            for arm in document["arms"]
            if arm["name"] != document["control"]
            and (found := arm["metrics"].get(metric)) is not None
            and found["verdict"] == verdict
            and found["low"] is not None
        ]
        if shown:
            low, mid, high = (
                np.array([found[end] for _, found in shown])
                for end in ("low", "difference", "high")
            )
            traces.append(
                _points([*mid.tolist()], [escape(name) for name, _ in shown], color)
                | {
                    "name": verdict.replace("_", " "),
                    "error_x": {
                        "symmetric": False,
                        "array": [*(high - mid).tolist()],
                        "arrayminus": [*(mid - low).tolist()],
                    },
                }
            )
    if not traces:
        return None
    rows = sum(len(trace["y"]) for trace in traces)
    zero = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": 0}
    layout = {
        "height": 130 + _ROW_HEIGHT * rows,
        "hovermode": "closest",
        "xaxis": {"title": {"text": f"difference to {escape(document['control'])}"}},
        "yaxis": {"type": "category", "automargin": True},
        "shapes": [zero | {"line": {"dash": "dot", "width": 1, "color": "#888"}}],
    }
    note = "Bars are 95 % intervals."
    return Chart(key, title(metric), traces, layout, (), note, is_over_steps=False)


def _points(x: Sequence[Any], y: Sequence[Any], color: int) -> Json:
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "yaxis": "y", "color": color}


def _varied(document: Document) -> list[Chart]:
    """Returns the main metric over one varied number, or over two varied values."""
    metric = document.get("metric")
    points = [
        ({**dict(map(tuple, arm["overrides"])), **dict(map(tuple, arm.get("tuned") or ()))}, found)
        for arm in document["arms"]
        if metric is not None and (found := arm["metrics"].get(metric)) is not None
    ]
    paths = list(dict.fromkeys(path for settings, _ in points for path in settings))
    if metric is None or len(points) < 2 or any(len(s) != len(paths) for s, _ in points):
        return []  # arms of different fields have no common axis
    numeric = [path for path in paths if all(_number(s[path]) is not None for s, _ in points)]
    if len(paths) == 1 and numeric:
        return [_curve_over(metric, paths[0], {"": points})]
    if len(paths) != 2:
        return []
    across = numeric[-1] if numeric else paths[-1]
    other = next(path for path in paths if path != across)
    if across in numeric:
        by_other: dict[str, list[Any]] = {}
        for settings, found in points:
            by_other.setdefault(f"{other} {settings[other]}", []).append((settings, found))
        return [_curve_over(metric, across, by_other), *_heat(metric, across, other, points)]
    return _heat(metric, across, other, points)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _curve_over(metric: str, path: str, lines: Mapping[str, Sequence[Any]]) -> Chart:
    """Returns the metric over a number, with a fitted parabola and its lowest point."""
    traces, notes, log = [], [], True
    for color, (name, points) in enumerate(lines.items()):
        rows = sorted((_number(s[path]) or 0.0, found) for s, found in _keyed(points, path))
        x, y = [value for value, _ in rows], [found["mean"] for _, found in rows]
        log &= min(x) > 0
        error = {"array": [found["stderr"] or 0.0 for _, found in rows]}
        label = escape(name or "mean")
        traces.append(_points(x, y, color) | {"name": label, "error_y": error})
        traces[-1]["mode"] = "lines+markers"
        if (lowest := _lowest(x, y)) is not None:
            notes.append(f"{name or 'Fitted parabola'}: lowest at {lowest:.3g}.")
    axis: Json = {"title": {"text": escape(path)}, "type": "log" if log else "linear"}
    note = " ".join([*notes, "Bars are one standard error."])
    return Chart("varied", title(metric), traces, {"xaxis": axis}, (), note, is_over_steps=False)


def _keyed(points: Sequence[Any], path: str) -> list[Any]:
    return sorted(points, key=lambda point: _number(point[0][path]) or 0.0)


def _lowest(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the minimum of a parabola through the best point and its neighbours.

    None where the best point lies at an end, so that the minimum is not enclosed.
    """
    best = int(np.argmin(y))
    if not 0 < best < len(x) - 1:
        return None
    near = slice(best - 1, best + 2)
    scale = np.log if min(x) > 0 else np.asarray
    a, b, _ = np.polyfit(scale(np.array(x[near])), y[near], 2)
    middle = float(-b / (2 * a))
    return float(np.exp(middle)) if min(x) > 0 else middle


def _heat(metric: str, across: str, up: str, points: Sequence[Any]) -> list[Chart]:
    """Returns the map of a metric over two varied values; [] where only one of them varies."""
    columns = _ordered({settings[across] for settings, _ in points})
    rows = _ordered({settings[up] for settings, _ in points})
    if min(len(columns), len(rows)) < 2:
        return []
    means = {(s[up], s[across]): found["mean"] for s, found in points}
    values = [[means.get((row, column)) for column in columns] for row in rows]
    trace = {
        "type": "heatmap",
        "x": list(map(escape, columns)),
        "y": list(map(escape, rows)),
        "z": values,
        "text": [[format_number(value, 4) if value is not None else "" for value in row]
                 for row in values],
        "texttemplate": "%{text}",
        "colorscale": "Viridis",
        "reversescale": True,
    }  # fmt: skip
    layout = {
        "xaxis": {"type": "category", "title": {"text": escape(across)}},
        "yaxis": {"type": "category", "title": {"text": escape(up)}},
        "height": 150 + 2 * _ROW_HEIGHT * len(rows),
    }
    return [Chart("heat", f"{title(metric)} over both", [trace], layout, is_over_steps=False)]


def _ordered(texts: set[str]) -> list[str]:
    """Returns values in the order of their numbers, or of their texts."""
    return sorted(texts, key=lambda text: (_number(text) is None, _number(text) or 0.0, text))


def _against_cost(document: Document) -> list[Chart]:
    """Returns the main metric of each arm over its FLOPs and over its hours."""
    metric, settings = document.get("metric"), document["planned"].get("settings", {})
    made = []
    for key, label in (("flops", "FLOPs of a run"), ("device_hours", "device-hours of a run")):
        traces: list[Json] = []
        for color, arm in enumerate(document["arms"]):
            found = arm.get("metrics", {}).get(metric)
            setting = arm["runs"][0]["folder"].rpartition("/")[0]
            cost = settings.get(setting, {}).get(key)
            if found is not None and cost:
                error = {"array": [found["stderr"] or 0.0]}
                point = _points([cost], [found["mean"]], color)
                traces.append(point | {"name": escape(arm["name"]), "error_y": error})
        if len({trace["x"][0] for trace in traces}) > 1:
            layout = {"xaxis": {"title": {"text": label}}, "hovermode": "closest"}
            heading = f"{title(metric or '')} over {label}"
            made.append(Chart(f"cost_{key}", heading, traces, layout, is_over_steps=False))
    return made


def _cost(document: Document) -> str:
    planned = document["planned"]
    rows = [["runs", str(len(_all_runs(document)))]]
    rows.append(["FLOPs of all runs", format_count(planned["flops"])])
    if planned.get("device_hours") is not None:
        rows.append(["device-hours, planned", format_number(planned["device_hours"], 3)])
    equal = document.get("equal") or []
    rows.append(["equal over the arms", ", ".join(map(str, equal)) or "nothing"])
    return table(["cost", ""], rows)


def _differences(document: Document) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in document.get("differences") or ())
    settings = [
        [arm["name"], " ".join(f"{path}={text}" for path, text in arm["overrides"]) or "none"]
        for arm in document["arms"]
    ]
    return (f"<ul>{lines}</ul>" if lines else "") + table(["arm", "settings of its own"], settings)


def _runs(document: Document, runs: Mapping[str, Run]) -> str:
    """Returns the runs with their states, those with findings first."""
    rows = []
    for arm in document["arms"]:
        for run in arm["runs"]:
            read = runs.get(run["folder"])
            found = [f.title for f in read.findings if f.severity != "info"] if read else []
            loss = format_number(read.final_loss) if read and read.final_loss is not None else ""
            trouble = ", ".join([*found, *filter(None, [run.get("problem", "")])])
            rows.append([run["folder"], str(run["seed"]), run["state"], loss, trouble])
    rows.sort(key=lambda row: (not row[-1], row[2] == "done"))
    return table(["run", "seed", "state", "training loss, last 5%", "what went wrong"], rows)
