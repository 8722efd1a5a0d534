"""The page about a sweep, from the `sweep.json` of the command `sweep` and the folders of runs."""

from collections.abc import Mapping, Sequence
from html import escape
from math import inf, isfinite
from pathlib import Path

import numpy as np

from jaxpretrain.config.serialize import Document
from jaxpretrain.display.wording import format_count, format_number, format_signed
from jaxpretrain.reports.charts import charts
from jaxpretrain.reports.curves import Chart, Json, Section, upright
from jaxpretrain.reports.parts import table
from jaxpretrain.reports.runs import RunHistory, read_run
from jaxpretrain.reports.words import title
from jaxpretrain.storage.jsonl import has_lines
from jaxpretrain.storage.run_documents import METRICS, SWEEP, SweepFile, read_document

MOST_CURVES = 24
"""The largest number of arms whose curves are drawn."""
MOST_FORESTS = 8
"""The largest number of metrics with a chart of differences."""
_ROW_HEIGHT = 26
_ENDS = ("difference", "low", "high")
_VERDICTS = {"better": 2, "worse": 1, "no_difference": 7}  # and the places of their colours
Results = Mapping[str, Document]
"""The mean of a metric by arm, with its comparison to the control."""


def sweep_sections(folder: Path) -> tuple[str, dict[str, Section]]:
    """Returns the top of the page and its sections; InputError: a file cannot be read."""
    document = read_document(folder / SWEEP, SweepFile)
    arms, control, metric = document["arms"], document["control"], document.get("metric") or ""
    listed = [run for arm in arms for run in arm["runs"]]
    names = [run["folder"] for run in listed if has_lines(folder / run["folder"] / METRICS)]
    runs = {name: read_run(folder / name, name) for name in names}
    metrics = dict.fromkeys(name for arm in arms for name in arm.get("metrics", {}))
    results: dict[str, Results] = {
        name: {arm["name"]: arm["metrics"][name] for arm in arms if name in arm.get("metrics", {})}
        for name in sorted(metrics, key=lambda name: name != metric)
    }
    forests = [
        _forest(f"forest_{place}", name, results[name], control)
        for place, name in enumerate([*results][:MOST_FORESTS])
    ]
    main = results.get(metric, {})
    answer = "".join(f"<p>{escape(line)}</p>" for line in document.get("answer", ()))
    kind = "good" if all(run.get("state") == "done" for run in listed) else "warning"
    return f'<div class="verdict {kind}">{answer}</div>' * bool(answer), {
        "Arms": _arms(results, control),
        "Differences to the control": [chart for chart in forests if chart.traces],
        "Varied values": _varied(arms, metric, main),
        "Curves": charts([*runs.values()]) if runs and len(arms) <= MOST_CURVES else [],
        "Loss against cost": _against_cost(document, metric, main),
        "Cost": _cost(document, len(listed)),
        "What differs": _differences(document),
        "Runs": _runs(listed, runs),
    }


def _arms(results: Mapping[str, Results], control: str) -> str:
    """Returns the table of the main metric, and those of the others to unfold."""
    if not results:
        return "<p>No run has finished.</p>"
    first, *others = ((escape(title(n)), _arm_table(r, control)) for n, r in results.items())
    more = (f"<details><summary>{name}</summary>{text}</details>" for name, text in others)
    note = (
        "<p class='soft'>Intervals are 95 % and not corrected for the number of arms; p is "
        "corrected by Holm's method, and the verdict follows it.</p>"
    )
    return f"<h3>{first[0]}</h3>{first[1]}{note}{''.join(more)}"


def _arm_table(results: Results, control: str) -> str:
    head = ["arm", "mean", "standard error", "runs", "difference", "interval", "p", "verdict"]
    rows = arm_rows(results, control)
    # Intervals stay on one line on phones, where the table scrolls.
    return table(head, [[cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row] for row in rows])


def arm_rows(results: Results, control: str) -> list[list[str]]:
    """Returns for each arm: name, mean, standard error, runs, difference, interval, p, verdict."""
    rows = []
    for arm, found in results.items():
        row = [arm, format_number(found["mean"], 5), format_number(found["stderr"], 3)]
        row.append(str(found["n"]))
        if arm == control:
            row += ["", "", "", "control"]
        elif found["p_holm"] is None:
            reason = "too few runs" if found["pairs"] < 2 else "not comparable"
            row += [format_signed(found["difference"], 4), "", "", reason]
        else:
            difference, low, high = (format_signed(found[k], 4) for k in _ENDS)
            row += [difference, f"{low} to {high}", format_p(found["p_holm"])]
            row.append(found["verdict"].replace("_", " "))
        rows.append(row)
    return rows


def format_p(value: float) -> str:
    """Returns a probability of chance with three decimals, or "<0.001"."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _forest(key: str, metric: str, results: Results, control: str) -> Chart:
    """Returns the chart of the differences to the control, coloured by verdict."""
    traces: list[Json] = []
    for verdict, color in _VERDICTS.items():
        shown = {
            escape(arm): found
            for arm, found in results.items()
            if arm != control and found["verdict"] == verdict and found["low"] is not None
        }
        if shown:
            ends = ("low", "difference", "high")
            low, mid, high = (np.array([f[end] for f in shown.values()]) for end in ends)
            bars = {"array": (high - mid).tolist(), "arrayminus": (mid - low).tolist()}
            trace = _markers(verdict.replace("_", " "), color, mid.tolist(), [*shown])
            traces.append(trace | {"error_x": {"symmetric": False, **bars}})
    layout = {
        "height": 130 + _ROW_HEIGHT * sum(len(trace["y"]) for trace in traces),
        "hovermode": "closest",
        "xaxis": {"title": {"text": f"difference to {escape(control)}"}},
        "yaxis": {"type": "category", "automargin": True},
        "shapes": [upright(0, "dot", "#888")],
    }
    return Chart(key, title(metric), traces, layout, note="Bars are 95 % intervals.")


def _markers(name: str, color: int, x: Sequence[float], y: Sequence[float | str]) -> Json:
    look = {"type": "scatter", "mode": "markers", "yaxis": "y", "color": color}
    return look | {"name": escape(name), "x": x, "y": y}


def _means(name: str, color: int, x: Sequence[float], found: Sequence[Document]) -> Json:
    """Returns the trace of means over `x`, with their standard errors."""
    error = {"array": [one["stderr"] or 0.0 for one in found]}
    return _markers(name, color, x, [one["mean"] for one in found]) | {"error_y": error}


Points = Sequence[tuple[dict[str, str], Document]]
"""The varied values of each arm, with the mean of a metric."""


def _varied(arms: Sequence[Document], metric: str, results: Results) -> list[Chart]:
    """Returns the main metric over one varied number, or over two varied values."""
    points = [
        (dict(arm.get("overrides", ())) | dict(arm.get("tuned") or ()), results[arm["name"]])
        for arm in arms
        if arm["name"] in results
    ]
    paths = [*dict.fromkeys(path for settings, _ in points for path in settings)]
    is_common = all(len(settings) == len(paths) for settings, _ in points)
    if len(points) < 2 or len(paths) not in (1, 2) or not is_common:
        return []  # arms of different fields have no common axis
    numeric = [path for path in paths if all(_number(s[path]) < inf for s, _ in points)]
    across = (numeric or paths)[-1]
    made = [_curve_over(metric, across, points)] if numeric else []
    made += [_heat(metric, across, up, points) for up in paths if up != across]
    return [chart for chart in made if chart.traces]


def _number(text: str) -> float:
    """Returns the number that a text is; infinity where it is none."""
    try:
        return value if isfinite(value := float(text)) else inf
    except ValueError:
        return inf


def _curve_over(metric: str, path: str, points: Points) -> Chart:
    """Returns curves over a number, one for each other value, with the minima of parabolas."""
    lines: dict[str, list[tuple[float, Document]]] = {}
    for settings, found in points:
        name = "".join(f"{other} {value}" for other, value in settings.items() if other != path)
        lines.setdefault(name, []).append((_number(settings[path]), found))
    traces, notes = [], []
    for color, (name, line) in enumerate(lines.items()):
        x, found = map(list, zip(*sorted(line, key=lambda point: point[0]), strict=True))
        traces.append(_means(name or "mean", color, x, found) | {"mode": "lines+markers"})
        if (lowest := _lowest(x, [one["mean"] for one in found])) is not None:
            notes.append(f"{name or 'Fitted parabola'}: lowest at {lowest:.3g}.")
    is_log = all(trace["x"][0] > 0 for trace in traces)
    axis: Json = {"title": {"text": escape(path)}, "type": "log" if is_log else "linear"}
    note = " ".join([*notes, "Bars are one standard error."])
    return Chart("varied", title(metric), traces, {"xaxis": axis}, note=note)


def _lowest(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the minimum of a parabola around the best value; None if that is at an end."""
    best = int(np.argmin(y))
    if not 0 < best < len(x) - 1:
        return None
    near = slice(best - 1, best + 2)
    scale, back = (np.log, np.exp) if min(x) > 0 else (np.asarray, np.asarray)
    a, b, _ = np.polyfit(scale(x[near]), y[near], 2)
    return float(back(-b / (2 * a)))


def _heat(metric: str, across: str, up: str, points: Points) -> Chart:
    """Returns the map of a metric over two varied values; without traces where only one varies."""
    columns, rows = (
        sorted({settings[path] for settings, _ in points}, key=lambda text: (_number(text), text))
        for path in (across, up)
    )
    means = {(s[up], s[across]): found["mean"] for s, found in points}
    values = [[means.get((row, column)) for column in columns] for row in rows]
    texts = [[format_number(x, 4) if x is not None else "" for x in row] for row in values]
    trace = {
        "type": "heatmap", "z": values, "text": texts, "texttemplate": "%{text}",
        "x": [*map(escape, columns)], "y": [*map(escape, rows)],
        "colorscale": "Viridis", "reversescale": True,
    }  # fmt: skip
    layout = {
        "xaxis": {"type": "category", "title": {"text": escape(across)}},
        "yaxis": {"type": "category", "title": {"text": escape(up)}},
        "height": 150 + 2 * _ROW_HEIGHT * len(rows),
    }
    traces = [trace] if min(len(columns), len(rows)) > 1 else []
    return Chart("heat", f"{title(metric)} over both", traces, layout)


def _against_cost(document: Document, metric: str, results: Results) -> list[Chart]:
    """Returns the main metric of each arm over its FLOPs and over its hours."""
    settings = document.get("planned", {}).get("settings", {})
    made = []
    for key, label in (("flops", "FLOPs of a run"), ("device_hours", "device-hours of a run")):
        traces: list[Json] = []
        for color, arm in enumerate(document["arms"]):
            setting = arm["runs"][0]["folder"].rpartition("/")[0] if arm["runs"] else ""
            cost = settings.get(setting, {}).get(key)
            if arm["name"] in results and cost:
                traces.append(_means(arm["name"], color, [cost], [results[arm["name"]]]))
        if len({trace["x"][0] for trace in traces}) > 1:
            layout = {"xaxis": {"title": {"text": label}}, "hovermode": "closest"}
            made.append(Chart(f"cost_{key}", f"{title(metric)} over {label}", traces, layout))
    return made


def _cost(document: Document, num_runs: int) -> str:
    planned = document.get("planned", {})
    rows = [["runs", str(num_runs)]]
    if planned.get("flops") is not None:
        rows.append(["FLOPs of all runs", format_count(planned["flops"])])
    if planned.get("device_hours") is not None:
        rows.append(["device-hours, planned", format_number(planned["device_hours"], 3)])
    equal = ", ".join(map(str, document.get("equal") or ())) or "nothing"
    return table(["cost", ""], [*rows, ["equal over the arms", equal]])


def _differences(document: Document) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in document.get("differences") or ())
    settings = [
        [
            arm["name"],
            " ".join(f"{path}={text}" for path, text in arm.get("overrides", ())) or "none",
        ]
        for arm in document["arms"]
    ]
    return (f"<ul>{lines}</ul>" if lines else "") + table(["arm", "settings of its own"], settings)


def _runs(listed: Sequence[Document], runs: Mapping[str, RunHistory]) -> str:
    """Returns the runs with their states, those with findings first."""
    rows = []
    for run in listed:
        read = runs.get(run["folder"])
        found = [f.title for f in read.findings if f.severity != "info"] if read else []
        loss = format_number(read.final_loss) if read and read.final_loss is not None else ""
        trouble = ", ".join(filter(None, [*found, run.get("problem", "")]))
        rows.append([run["folder"], str(run["seed"]), run.get("state"), loss, trouble])
    rows.sort(key=lambda row: (not row[-1], row[2] == "done"))
    return table(["run", "seed", "state", "training loss, last 10%", "what went wrong"], rows)
