"""The page about scaling laws, from the document of the command `scaling`."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.predicted import how_far
from jaxpretrain.display.wording import format_count, format_number
from jaxpretrain.reports.curves import Chart, Json, Section
from jaxpretrain.reports.parts import table

NAMES = ("A", "B", "E", "alpha", "beta")
_CURVE = 60  # points of a drawn curve
_WIDTH = 2.0  # half of the width of a drawn parabola, in the log of the size
_LOG: Json = {"type": "log"}


def scaling_sections(document: Document) -> tuple[str, dict[str, Section]]:
    """Returns the top of the page and its sections."""
    law = next((fit for fit in document["fits"] if fit["A"] is not None), None)
    isoflop = next((fit for fit in document["fits"] if fit["method"] == "isoflop"), None)
    charts = [_measured(document, law), _residuals(document)] if law else []
    charts += [_isoflops(document, isoflop), _best(document, isoflop)] if isoflop else []
    return _top(document), {
        "Fits": _fits(document),
        "Curves": [chart for chart in charts if chart.traces],
        "Predicted and measured": _scored(document),
        "Compute-optimal sizes": _optimal(document),
        "Single points": _influence(document),
        "Points": _points(document),
    }


def _top(document: Document) -> str:
    lines = []
    if (found := document["prediction"]) is not None:
        kind = "hindcast" if found["hindcast"] else "prediction"
        lines.append(
            f"The {kind} for {format_count(found['parameters'])} parameters and "
            f"{format_count(found['tokens'])} tokens is {_number(found['loss'])}, 95 % from "
            f"{_number(found['low'])} to {_number(found['high'])}. It "
            f"{how_far(found['extrapolation'])}."
        )
    lines += [f"Warning: {line}." for line in document["warnings"]]
    kind = "warning" if document["warnings"] else "good"
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="verdict {kind}">{text}</div>' if lines else ""


def _fits(document: Document) -> str:
    head = ["fit", *NAMES, "exponent of N in C", "objective", "points"]
    rows = []
    isoflops = [("isoflop", fit) for fit in document["fits"] if fit["method"] == "isoflop"]
    for method, fit in [*law_rows(document), *isoflops]:
        cells = [_with_ends(fit, name) for name in (*NAMES, "n_exponent")]
        rows.append([method, *cells, f"{fit['objective']:.6g}", str(fit["num_points"])])
    note = (
        "<p class='soft'>The loss is E + A / N^alpha + B / D^beta, with N parameters without the "
        "embedding, D tokens and C = 6 N D. Brackets hold 95 % of the resamplings of the points. "
        f"The loss is {escape(document['metric'])}.</p>"
    )
    return table(head, rows) + note


def law_rows(document: Document) -> list[tuple[str, Document]]:
    """Returns the laws of the loss by their methods, and those of the bits per byte of tasks."""
    laws = [(fit["method"], fit) for fit in document["fits"] if fit["A"] is not None]
    tasks = [(f"bits of {name}", law["bits_per_byte"]) for name, law in document["tasks"].items()]
    return laws + tasks


def _with_ends(fit: Document, name: str) -> str:
    if fit[name] is None:
        return ""
    low, high = (format_number(end, 3) for end in fit["intervals"][name])
    return f"{_number(fit[name])} [{low}, {high}]"


def _measured(document: Document, law: Document) -> Chart:
    """Returns the losses over FLOPs by size, with the law at these sizes and the prediction."""
    traces: list[Json] = []
    sizes = sorted({row["parameters"] for row in document["points"]})
    for place, size in enumerate(sizes):
        rows = [row for row in document["points"] if row["parameters"] == size]
        color: Any = {"at": place / max(len(sizes) - 1, 1)}
        tokens = np.array([row["tokens"] for row in rows])
        names = [row["name"] for row in rows]
        losses = [row["loss"] for row in rows]
        traces.append(_dots(format_count(size), color, 6 * size * tokens, losses, names))
        span = np.geomspace(tokens.min(), tokens.max(), 20)
        traces.append(_line("", color, 6 * size * span, _loss(law, size, span)))
    if (said := document["prediction"]) is not None:
        flops = np.array([6 * said["parameters"] * said["tokens"]])
        trace = _dots("predicted", 1, flops, [said["loss"]], [said["config"]])
        up, down = said["high"] - said["loss"], said["loss"] - said["low"]
        bars = {"symmetric": False, "array": [up], "arrayminus": [down]}
        traces.append(trace | {"error_y": bars})
    layout = {"xaxis": _axis("FLOPs"), "yaxis": _LOG, "hovermode": "closest", "showlegend": False}
    note = "A colour for each size; lines are the law."
    return Chart("scaling_loss", "Loss over compute", traces, layout, note=note)


def _residuals(document: Document) -> Chart:
    rows = document["points"]
    ratio = np.array([row["tokens"] / row["parameters"] for row in rows])
    values = [row["residual"] for row in rows]
    trace = _dots("", 0, ratio, values, [row["name"] for row in rows])
    layout = {
        "xaxis": _axis("tokens a parameter"),
        "yaxis": {"tickformat": ".2~%"},
        "hovermode": "closest",
        "showlegend": False,
    }
    note = "Measured over predicted loss. A slope at the left is runs that were too short."
    return Chart("scaling_residuals", "What the law leaves", [trace], layout, note=note)


def _isoflops(document: Document, fit: Document) -> Chart:
    traces: list[Json] = []
    points = document["points"]
    curved = [one for one in fit["optima"] if one["curvature"]]
    for place, one in enumerate(curved):
        rows = [points[row] for row in one["rows"]]
        color: Any = {"at": place / max(len(curved) - 1, 1)}
        sizes = np.array([row["parameters"] for row in rows])
        losses = [row["loss"] for row in rows]
        names = [row["name"] for row in rows]
        traces.append(_dots(f"{one['flops']:.2g}", color, sizes, losses, names))
        away = np.linspace(-_WIDTH, _WIDTH, _CURVE)
        inside = away[
            (one["parameters"] * np.exp(away) >= sizes.min())
            & (one["parameters"] * np.exp(away) <= sizes.max())
        ]
        curve = one["loss"] + one["curvature"] * inside**2
        traces.append(_line("", color, one["parameters"] * np.exp(inside), curve))
    layout = {"xaxis": _axis("parameters"), "hovermode": "closest"}
    return Chart("scaling_isoflop", "Loss at equal FLOPs", traces, layout)


def _best(document: Document, fit: Document) -> Chart:
    flops = np.array([one["flops"] for one in fit["optima"]])
    sizes = [one["parameters"] for one in fit["optima"]]
    traces = [_dots("minima of parabolas", 0, flops, sizes, [""] * len(flops))]
    if rows := document["optimal"]:
        x = np.array([row["flops"] for row in rows])
        y = np.array([row["parameters"] for row in rows], float)
        traces.append(_line("the law", 1, x[np.isfinite(y)], y[np.isfinite(y)]))
    layout = {"xaxis": _axis("FLOPs"), "yaxis": _LOG, "hovermode": "closest"}
    return Chart("scaling_best", "Best size by compute", traces, layout)


def _scored(document: Document) -> str:
    rows = []
    for one in document["scored"]:
        ends = f"{_number(one['low'])} to {_number(one['high'])}"
        kind = "hindcast" if one["hindcast"] else "prediction"
        row = [one["name"], kind, _number(one["loss"]), ends, _number(one["measured"])]
        rows.append([*row, f"{one['error']:+.2%}", "yes" if one["is_inside"] else "no"])
    head = ["run", "", "predicted", "95 % interval", "measured", "error", "inside"]
    return table(head, rows) if rows else ""


def _optimal(document: Document) -> str:
    if not document["optimal"]:
        return ""
    head = ["FLOPs", "parameters", "tokens", "tokens a parameter", "loss", "95 % interval"]
    return table(head, optimal_rows(document))


def optimal_rows(document: Document) -> list[list[str]]:
    """Returns the table of the best size, length and loss of each budget, as text."""
    rows = []
    for row in document["optimal"]:
        low, high = (format_number(end, 4) for end in row["loss_interval"])
        counts = [_count(row["parameters"]), _count(row["tokens"])]
        ratio = format_number(row["tokens_per_parameter"], 3)
        rows.append([f"{row['flops']:.3g}", *counts, ratio, _number(row["loss"])])
        rows[-1].append(f"{low} to {high}")
    return rows


def _influence(document: Document) -> str:
    if (found := document["influence"]) is None:
        return ""
    rows = [[row["name"], format_number(row["moves"], 2)] for row in found["strongest"]]
    rest = ", ".join(f"{name} {_number(found['without'][name])}" for name in NAMES)
    return (
        table(["point", "largest change of an exponent without it"], rows)
        + f"<p>Without these {len(rows)} points: {escape(rest)}.</p>"
    )


def _points(document: Document) -> str:
    rows = [
        [
            row["name"],
            format_count(row["parameters"]),
            format_count(row["tokens"]),
            _number(row["loss"]),
            f"{row['residual']:+.2%}",
        ]
        for row in document["points"]
    ]
    head = ["point", "parameters", "tokens", "loss", "above the law"]
    shown = f"<summary>{len(rows)} points, hash {document['hash'][:12]}</summary>"
    return f"<details>{shown}{table(head, rows)}</details>"


def _loss(law: Mapping[str, float], size: float, tokens: np.ndarray) -> np.ndarray:
    return law["E"] + law["A"] * size ** -law["alpha"] + law["B"] * tokens ** -law["beta"]


def _axis(title: str) -> Json:
    return {"title": {"text": title}, "type": "log"}


def _dots(name: str, color: Any, x: np.ndarray, y: Sequence[float], texts: Sequence[str]) -> Json:
    return {
        "type": "scatter", "mode": "markers", "name": escape(name), "color": color,
        "x": x.tolist(), "y": [*y], "text": [*map(escape, texts)], "yaxis": "y",
    }  # fmt: skip


def _line(name: str, color: Any, x: np.ndarray, y: np.ndarray) -> Json:
    return {
        "type": "scatter", "mode": "lines", "name": escape(name), "color": color,
        "x": x.tolist(), "y": y.tolist(), "yaxis": "y", "showlegend": bool(name),
    }  # fmt: skip


def _count(value: float | None) -> str:
    return "?" if value is None else format_count(value)


def _number(value: float | None) -> str:
    return format_number(value, 5)
