"""The HTML page: the sections with their style, their figures and the plotting library."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from plotly.offline import get_plotlyjs

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document
from jaxpretrain.monitor.writers import PICTURES
from jaxpretrain.reports import words
from jaxpretrain.reports.charts import COLUMNS, charts, hours_chart, layer_charts
from jaxpretrain.reports.comparison import as_csv, comparison
from jaxpretrain.reports.coordinates import coordinate_sections
from jaxpretrain.reports.curves import Chart, Section
from jaxpretrain.reports.parts import plot
from jaxpretrain.reports.replays import read_replays, section
from jaxpretrain.reports.runs import RunHistory, common_folder, folder_name, read_runs, run_folders
from jaxpretrain.reports.scaling import scaling_sections
from jaxpretrain.reports.sweep import sweep_sections
from jaxpretrain.storage.files import relative, write_atomically
from jaxpretrain.storage.paths import list_files
from jaxpretrain.storage.run_documents import SWEEP

FEWEST_COLUMNS = 20
"""The smallest number of steps of a map of layers, however many runs there are."""
MOST_NAMES = 3
"""The largest number of runs that the title names."""
MOST_PICTURES = 24
"""The largest number of pictures."""
MOST_PICTURE_BYTES = 4_000_000
"""The largest size of all pictures together."""
_LARGE = 100_000  # bytes of a file that is told in megabytes
_NARROW = ("Time", "Plan", "Where the loss is going", "Samples", "Pictures")
# The browser fetches nothing, whatever a name in a file contains.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


def write_report(
    workdirs: Sequence[Path], output: Path | None, table: Path | None = None
) -> list[str]:
    """Writes the page about the runs of some folders, and their table as CSV to `table`.

    A folder may hold runs instead. The lines that are returned sum the page up.

    Raises:
      InputError: no folder holds a run, a file cannot be written, or `table` is given for a sweep,
        which has its table already.
    """
    first, lines = workdirs[0], []
    if len(workdirs) == 1 and (first / SWEEP).exists():
        if table is not None:
            raise InputError(f"--csv={table}: the table of a sweep is {first / 'sweep.csv'}")
        top, sections = sweep_sections(first)
        text = _document(folder_name(first), datetime.now(), top, sections)
        texts = {output or first / "report.html": text}
    else:
        folders, empty = run_folders(workdirs)
        runs = read_runs(folders)
        output = output or relative(common_folder(folders) / "report.html", Path.cwd())
        texts = {output: page(runs)} | ({table: as_csv(runs)} if table else {})
        lines += [f"{path}: holds no run, left out" for path in empty]
        for run in runs:
            titles = [finding.title.lower() for finding in run.findings if not finding.is_over]
            nothing = "nothing stands out" if len(run.history.loss) else "no step is reported yet"
            lines.append(f"{run.name}: {', '.join(titles) or nothing}")
    for path, text in texts.items():
        _write(path, text)
        size = len(text.encode())
        shown = f"{size / 1e6:.1f} MB" if size >= _LARGE else f"{size:,} bytes"
        lines.append(f"{path}: {shown}")
    return lines


def write_scaling(document: Document, output: Path) -> None:
    """Writes the page about scaling laws, from the document of the command `scaling`.

    Raises:
      InputError: the file cannot be written.
    """
    top, sections = scaling_sections(document)
    text = _document(f"Scaling laws of {document['metric']}", datetime.now(), top, sections)
    _write(output, text)


def write_coordinates(document: Document, output: Path) -> None:
    """Writes the page about a coordinate check, from the document of its command.

    Raises:
      InputError: the file cannot be written.
    """
    top, sections = coordinate_sections(document)
    _write(output, _document("Coordinate check", datetime.now(), top, sections))


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def page(runs: Sequence[RunHistory]) -> str:
    """Returns the HTML document about some runs: the one, or their comparison and then each."""
    curves, hours, several = charts(runs), hours_chart(runs), len(runs) > 1
    bars = plot("hours") if hours.traces else ""
    inner = [hours] if bars else []
    top, each, parts = "", "", {}
    columns = max(COLUMNS // len(runs), FEWEST_COLUMNS)
    for place, run in enumerate(runs):
        prefix = f"run{place}_" if several else ""
        layers = layer_charts(run, prefix, columns)
        replays, what_if = section(read_replays(run.folder), prefix)
        inner += what_if
        top = words.verdict(run) + words.cards(run)
        parts: dict[str, Section] = {
            "Findings": words.findings(run, [*curves, *layers]),
            "Replays": replays,
            "Time": words.times(run) + ("" if several else bars),
            "Interventions": words.interventions(run),
            "Plan": words.planned(run),
            "Where the loss is going": words.forecasts(run),
            "Layers": layers,
            "Samples": words.samples(run),
            "Pictures": _pictures(run.folder),
            "Config": words.config(run),
        }
        if several:
            inner += layers
            each += (
                f'<details class="run" id="run-{place}"><summary><b>{escape(run.name)}</b> '
                f"{words.judgement(run)}</summary>{top}{_body(parts, 3)}</details>"
            )
    sections = {"Curves": curves} | parts
    if several:
        top = ""
        sections = {"Runs": comparison(runs), "Curves": curves, "Time": bars, "Each run": each}
    title = ", ".join(run.name for run in runs) if len(runs) <= MOST_NAMES else f"{len(runs)} runs"
    return _document(title, datetime.fromtimestamp(runs[0].now), top, sections, inner)


def _document(
    title: str,
    read: datetime,
    top: str,
    sections: Mapping[str, Section],
    inner: Sequence[Chart] = (),
) -> str:
    """Returns the document; the texts of its sections contain the places of the inner charts."""
    shown = [chart for part in sections.values() if isinstance(part, list) for chart in part]
    figures = {
        chart.key: {"traces": chart.traces, "layout": chart.layout, "linked": chart.is_over_steps}
        for chart in [*shown, *inner]
    }
    # "<" would end a script early, were it part of "</script>".
    data = json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    assets = files("jaxpretrain.reports") / "assets"
    links = "".join(f'<a href="#{_id(name)}">{name}</a>' for name, part in sections.items() if part)
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>{(assets / 'style.css').read_text()}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f'<p class="soft">Read {read:%Y-%m-%d %H:%M}. Steps count finished updates.</p>',
            f'<nav aria-label="Contents">{links}</nav>{top}{_body(sections, 2)}',
            "<footer class='soft'>Charts by Plotly.js (MIT licence).</footer>",
            f'<script type="application/json" id="figures">{data}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{(assets / 'script.js').read_text()}</script>",
            "</body></html>\n",
        ]
    )


def _body(sections: Mapping[str, Section], level: int) -> str:
    """Returns the sections that are not empty, narrow ones side by side."""
    parts = "".join(
        f"<section{f' id={_id(name)}' if level == 2 else ''}"
        f"{' class=narrow' if name in _NARROW else ''}><h{level}>{name}</h{level}>"
        f"{part if isinstance(part, str) else _grid(part)}</section>"
        for name, part in sections.items()
        if part
    )
    return f'<div class="sections">{parts}</div>'


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


def _grid(shown: Sequence[Chart]) -> str:
    return f'<div class="charts">{"".join(map(_place, shown))}</div>'


def _place(chart: Chart) -> str:
    """Returns the place of a chart, with its title and its buttons."""
    is_map = any(trace["type"] == "heatmap" for trace in chart.traces)
    axes = {"xaxis": "steps", "yaxis": "values"} if chart.is_over_steps and not is_map else {}
    buttons = "".join(
        f'<button data-plot="{chart.key}" data-axis="{axis}" aria-pressed="'
        f'{str(chart.layout.get(axis, {}).get("type") == "log").lower()}">log {label}</button> '
        for axis, label in axes.items()
    )
    note = f'<p class="soft">{escape(chart.note)}</p>' if chart.note else ""
    return (
        f'<div class="chart{" wide" if chart.key == "loss" else ""}" id="chart-{chart.key}">'
        f'<div class="head"><h3>{escape(chart.title)}</h3>'
        f'<div class="buttons">{buttons}</div></div>'
        f"{note}{plot(chart.key, chart.layout.get('height', 300))}</div>"
    )


def _pictures(workdir: Path) -> str:
    """Returns the latest picture of each name beside the first, which shows the progress."""
    shown, size = [], 0
    folder = workdir / PICTURES
    pictures = [path for path in list_files(folder) if path.suffix == ".png"]
    for place in sorted({path.parent for path in pictures}):
        steps = [path for path in pictures if path.parent == place]
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
