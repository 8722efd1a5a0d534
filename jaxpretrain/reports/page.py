"""The HTML page: the sections with their style, their figures and the plotting library."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from plotly.offline import get_plotlyjs

from jaxpretrain.config.errors import InputError
from jaxpretrain.monitor.pictures import FOLDER
from jaxpretrain.reports import words
from jaxpretrain.reports.charts import Chart, Json, charts
from jaxpretrain.reports.layers import layer_charts
from jaxpretrain.reports.planned import planned
from jaxpretrain.reports.runs import Run, read_run
from jaxpretrain.storage.files import write_atomically

MOST_PICTURES = 24
"""The largest number of pictures."""
MOST_PICTURE_BYTES = 4_000_000
"""The largest size of all pictures together."""
# The browser fetches nothing, whatever a name in a file contains.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


def write_report(workdirs: Sequence[Path], output: Path | None) -> list[str]:
    """Writes the page about the runs of some folders; returns lines that sum it up.

    Raises:
      InputError: a folder holds no run, or the file cannot be written.
    """
    runs = [read_run(workdir) for workdir in workdirs]
    output = output or workdirs[0] / "report.html"
    document = page(runs, workdirs)
    try:
        write_atomically(output, document)
    except OSError as error:
        raise InputError(f"--output={output}: {error.strerror}") from error
    lines = []
    for run in runs:
        titles = [finding.title.lower() for finding in run.findings if not finding.is_over]
        lines.append(f"{run.name}: {', '.join(titles) or 'nothing stands out'}")
    return [*lines, f"{output}: {len(document.encode()) / 1e6:.1f} MB"]


def page(runs: Sequence[Run], workdirs: Sequence[Path]) -> str:
    """Returns the HTML document about some runs, mainly about the first."""
    curves, layers = charts(runs), layer_charts(runs)
    made = [*curves, *layers]
    figures = {
        chart.key: {"traces": chart.traces, "layout": chart.layout, "linked": True}
        for chart in made
    }
    title, read = ", ".join(run.name for run in runs), datetime.fromtimestamp(runs[0].now)
    body = "".join(
        [
            f"<h1>{escape(title)}</h1>",
            f'<p class="soft">Read {read:%Y-%m-%d %H:%M}. Steps count finished updates.</p>',
            *(_summary(run, len(runs) > 1) for run in runs),
            _grid("Curves", curves),
            _grid("Layers", layers),
            _section("Findings", [(r, words.findings(r, made)) for r in runs]),
            _section("Time", [(r, words.times(r)) for r in runs]),
            '<div class="chart"><div class="plot" id="plot-hours"></div></div>',
            _section("Plan", [(r, planned(r)) for r in runs]),
            _section("Where the loss is going", [(r, words.forecasts(r)) for r in runs]),
            f"<h2>Differences</h2>{words.differences(runs)}" if len(runs) > 1 else "",
            _section("Samples", [(r, words.samples(r)) for r in runs if r.samples]),
            _section("Pictures", [(r, _pictures(d)) for r, d in zip(runs, workdirs, strict=True)]),
            "<h2>Config</h2>" + "".join(words.config(run) for run in runs),
            "<footer class='soft'>Charts by Plotly.js (MIT licence).</footer>",
        ]
    )
    return _document(title, body, figures | {"hours": _hours(runs)})


def _document(title: str, body: str, figures: Json) -> str:
    assets = files("jaxpretrain.reports") / "assets"
    # "<" would end a script early, were it part of "</script>".
    data = json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>{(assets / 'style.css').read_text()}</style></head><body>",
            body,
            f'<script type="application/json" id="figures">{data}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{(assets / 'script.js').read_text()}</script>",
            "</body></html>\n",
        ]
    )


def _summary(run: Run, has_others: bool) -> str:
    name = f"<h2>{escape(run.name)}</h2>" if has_others else ""
    return name + words.verdict(run) + words.cards(run)


def _section(title: str, parts: list[tuple[Run, str]]) -> str:
    """Returns a heading with the text about each run; "" where all texts are empty."""
    shown = [(run, text) for run, text in parts if text]
    if not shown:
        return ""
    if len(parts) == 1:
        return f"<h2>{title}</h2>{shown[0][1]}"
    return f"<h2>{title}</h2>" + "".join(f"<h3>{escape(r.name)}</h3>{t}" for r, t in shown)


def _grid(title: str, shown: Sequence[Chart]) -> str:
    """Returns a heading with charts side by side; "" without any."""
    places = "".join(_place(chart, wide=chart.key == "loss") for chart in shown)
    return f'<h2>{title}</h2><div class="charts">{places}</div>' if shown else ""


def _place(chart: Chart, *, wide: bool) -> str:
    """Returns the place of a chart, with its title and its buttons."""
    is_map = any(trace["type"] == "heatmap" for trace in chart.traces)
    axes = () if is_map else (("xaxis", "steps"), ("yaxis", "values"))
    buttons = "".join(
        f'<button data-plot="{chart.key}" data-axis="{axis}" aria-pressed="'
        f'{str(chart.layout.get(axis, {}).get("type") == "log").lower()}">log {label}</button> '
        for axis, label in axes
    )
    note = f'<p class="soft">{escape(chart.note)}</p>' if chart.note else ""
    height = chart.layout.get("height", 300)
    return (
        f'<div class="chart{" wide" if wide else ""}" id="chart-{chart.key}">'
        f'<div class="buttons">{buttons}</div><h3>{escape(chart.title)}</h3>{note}'
        f'<div class="plot" id="plot-{chart.key}" style="min-height:{height}px"></div></div>'
    )


def _hours(runs: Sequence[Run]) -> Json:
    """Returns the figure of the hours of each part, with a bar for each run."""
    parts = {run.name: dict(words.hours(run)) for run in runs}
    names = dict.fromkeys(name for of in parts.values() for name, seconds in of.items() if seconds)
    traces = [
        {
            "type": "bar", "orientation": "h", "name": name, "color": color,
            "x": [float(f"{seconds.get(name, 0.0) / 3600:.5g}") for seconds in parts.values()],
            "y": [escape(run) for run in parts], "hovertemplate": "%{x:.3g} h",
        }
        for color, name in enumerate(names)
    ]  # fmt: skip
    layout = {
        "barmode": "stack", "height": 200 + 34 * len(runs), "hovermode": "closest",
        "title": {"text": "Hours, by what they went to", "font": {"size": 15}, "x": 0},
        "margin": {"l": 10, "r": 14, "t": 40, "b": 90},
        "legend": {"orientation": "h", "y": -0.3, "traceorder": "normal"},
        "yaxis": {"automargin": True},
    }  # fmt: skip
    return {"traces": traces, "layout": layout, "linked": False}


def _pictures(workdir: Path) -> str:
    """Returns the latest picture of each name beside the first, which shows the progress."""
    shown, size = [], 0
    folder = workdir / FOLDER
    for place in sorted({path.parent for path in folder.rglob("*.png")}):
        steps = sorted(place.glob("*.png"))
        for path in dict.fromkeys([steps[-1], steps[0]]):
            content = path.read_bytes()
            size += len(content)
            if len(shown) < MOST_PICTURES and size <= MOST_PICTURE_BYTES:
                name = f"{place.relative_to(folder)}, step {int(path.stem):,}"
                data = base64.b64encode(content).decode()
                shown.append(
                    f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
                    f'<figcaption class="soft">{escape(name)}</figcaption></figure>'
                )
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""
