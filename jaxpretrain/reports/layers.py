"""The charts of layers: maps of layers by steps, and curves of the parts outside of layers."""

import re

import numpy as np

from jaxpretrain.diagnosis.history import Series
from jaxpretrain.models.stack import STACK, tower_of
from jaxpretrain.reports.curves import Chart, Json, chart
from jaxpretrain.reports.groups import grouped
from jaxpretrain.reports.points import numbers
from jaxpretrain.reports.runs import Run

COLUMNS = 200
"""The largest number of steps of a map, or of those of all runs together."""
_TITLES = {
    "grad_norm": "Gradient norm",
    "param_norm": "Weight norm",
    "update_ratio": "Update norm / weight norm",
    "attention_logit": "Largest attention logit",
    "activation_rms": "Root mean square of activations",
}


def layer_charts(run: Run, prefix: str = "", columns: int = COLUMNS) -> list[Chart]:
    """Returns the charts of all signals of a run; `prefix` begins their keys."""
    made = [*_maps(run, prefix, columns), *_outside(run, prefix)]
    return [chart for chart in made if chart.traces]


def _maps(run: Run, prefix: str, columns: int) -> list[Chart]:
    made = []
    for quantity, title in _TITLES.items():
        # Encoder before decoder.
        for name in sorted(run.history.names(f"signals/{quantity}/", STACK), reverse=True):
            trace, layout = _map(run.history[name], columns)
            note = "Bottom layer below; colours are logarithmic."
            heading = f"{title} by {tower_of(name)} layer".replace("  ", " ")
            made.append(
                Chart(f"{prefix}layers_{len(made)}", heading, [trace], layout, (name,), note)
            )
    return made


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


def _outside(run: Run, prefix: str) -> list[Chart]:
    """Returns charts of the embedding, the head and the norms, with a curve for each."""
    made, groups = [], grouped([run])
    for quantity, title in _TITLES.items():
        names = run.history.names(f"signals/{quantity}/")
        curves = {
            re.sub("[/_]", " ", name.split("/", 2)[2]): name
            for name in names
            if run.history[name].values.ndim == 1
        }
        key, heading = f"{prefix}outside_{quantity}", f"{title} outside of layers"
        made.append(chart(groups, key, heading, curves, {"yaxis": {"type": "log"}}))
    return made
