"""The page about a coordinate check, from the document of the command `coordinate_check`."""

from collections.abc import Sequence
from html import escape

from jaxpretrain.config.serialize import Document
from jaxpretrain.display.wording import format_known
from jaxpretrain.models.stack import STACK
from jaxpretrain.reports.curves import Chart, Json, Section
from jaxpretrain.reports.words import table

_KINDS = {"change": "Changes since initialization", "size": "Sizes", "update": "Updates"}


def coordinate_sections(document: Document) -> tuple[str, dict[str, Section]]:
    """Returns the top of the page and its sections."""
    sections: dict[str, Section] = {}
    for axis in ("width", "depth"):
        if document[f"{axis}s"]:
            for kind, title in _KINDS.items():
                charts = _panels(document, axis, kind)
                sections[f"{title} over {axis}"] = charts
    return _top(document), sections | {"Slopes": _slopes(document)}


def _top(document: Document) -> str:
    flat = document["flat"]
    text = (
        f"{'Flat' if flat else 'Not flat'} under scaling {document['scaling']}: the largest slope "
        f"of a change is {format_known(document['max_abs_slope'], '.3f')}, the largest at "
        f"initialization {format_known(document['max_initial_slope'], '+.3f')}."
    )
    return f'<div class="verdict {"good" if flat else "warning"}"><p>{escape(text)}</p></div>'


def _panels(document: Document, axis: str, kind: str) -> list[Chart]:
    """Returns a panel for each quantity: its mean over layers at each step, over the size."""
    rows = [row for row in document["sizes"] if (row["axis"], row["kind"]) == (axis, kind)]
    charts = []
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        same = [row for row in rows if row["quantity"] == quantity]
        x = [row["size"] for row in same]
        traces: list[Json] = []
        for step in range(0 if kind == "size" else 1, document["num_steps"] + 1):
            y = [_mean([layer[step] for layer in row["layers"]]) for row in same]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"step {step}",
                    "color": {"at": step / document["num_steps"]},
                    "x": x,
                    "y": y,
                    "yaxis": "y",
                }
            )
        layout = {
            "xaxis": {"title": {"text": axis}, "type": "log", "tickvals": x, "ticktext": x},
            "yaxis": {"type": "log"},
            "hovermode": "closest",
        }
        note = "Root mean square, mean over layers; a line for each step."
        key = f"{axis}_{kind}_{len(charts)}"
        heading = quantity.replace("_", " ").replace(f"/{STACK}", " of layers")
        charts.append(Chart(key, heading, traces, layout, note=note))
    return charts


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _slopes(document: Document) -> str:
    head = ["over", "", "quantity", "layer", *map(str, range(document["num_steps"] + 1))]
    rows = [
        [
            row["axis"],
            row["kind"],
            row["quantity"],
            "" if row["layer"] is None else str(row["layer"]),
            *("" if slope is None else f"{slope:+.3f}" for slope in row["slopes"]),
        ]
        for row in document["slopes"]
    ]
    return f"<details><summary>By step</summary>{table(head, rows)}</details>"
