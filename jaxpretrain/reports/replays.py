"""The section of a report about the kept replays of a run, each from its own folder alone."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.history import Series
from jaxpretrain.display.wording import format_number
from jaxpretrain.reports.curves import Chart, line
from jaxpretrain.reports.parts import plot, table
from jaxpretrain.storage.paths import list_files
from jaxpretrain.storage.run_documents import REPLAY, REPLAYS, ReplayFile, read_document

MOST_TOKENS = 1500
"""The largest number of tokens of an example that are shown."""
MOST_SUSPECTS = 8
"""The largest number of suspects that are shown."""
AROUND = 5
"""The number of steps before and after a finding that its replay has."""
_FULL = 8.0  # nats at which the colour of a token is full
_REPLAYED = ("spike", "divergence", "not_finite")
Kept = Mapping[Path, Document]
"""Folder of a replay -> its document."""


def read_replays(workdir: Path) -> Kept:
    """Returns the kept replays of a run; InputError where a document is damaged."""
    paths = [path for path in list_files(workdir / REPLAYS) if path.name == REPLAY]
    found = {path.parent: read_document(path, ReplayFile) for path in paths}
    return dict(sorted(found.items(), key=lambda item: item[1]["steps"]))


def section(kept: Kept, prefix: str = "") -> tuple[str, list[Chart]]:
    """Returns the HTML about replays, and the charts of their arms; `prefix` begins their keys."""
    text, charts = "", []
    for number, (folder, document) in enumerate(kept.items()):
        first, last = document["steps"]
        words = document["proof"].get("words", "")
        key = f"{prefix}replay_{number}"
        arms = _arms(document, key)
        charts += arms
        text += (
            f'<details id="{_anchor(document)}" open><summary><b>Steps {first:,} to {last:,}</b>: '
            f"{escape(words)}</summary>{_list(document.get('notes', ()))}"
            f"{_list(document.get('against') or ())}"
            f"{_suspects(document)}{_steps(document)}"
            f"{''.join(plot(chart.key) for chart in arms)}"
            f"{_list([': '.join((arm['name'], arm['words'])) for arm in document.get('arms', ())])}"
            f"{''.join(_closer(folder, one) for one in document.get('closer', ()))}"
            f"{_tables(document)}</details>"
        )
    return text, charts


def about(finding: Finding, workdir: Path, kept: Kept, last: int) -> str:
    """Returns the HTML of the command that replays a finding, with links to kept replays of it.

    `last` is the last step of the run so far; "" for a finding that is not about single steps.
    """
    if finding.name not in _REPLAYED:
        return ""
    end = finding.last if finding.name == "spike" else finding.first
    steps = f"{max(finding.first - AROUND, 1)}-{min(end + AROUND, last)}"
    command = f"jaxpretrain replay --workdir={shlex.quote(str(workdir))} --steps={steps}"
    links = "".join(
        f' <a href="#{_anchor(one)}">replay of the steps {one["steps"][0]:,} to '
        f"{one['steps'][1]:,}</a>"
        for one in kept.values()
        if one["steps"][0] <= finding.first <= one["steps"][1]
    )
    return f"<p>What is in it: <code>{escape(command)}</code>{links}</p>"


def _anchor(document: Document) -> str:
    return "replay-{}-{}".format(*document["steps"])


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _suspects(document: Document) -> str:
    """Returns what stands out, the likeliest cause first."""
    found = document.get("suspects", ())[:MOST_SUSPECTS]
    items = "".join(
        f"<li><b>{escape(one['kind'])}</b>: {escape(one['name'])}. {escape(one['why'])}</li>"
        for one in found
    )
    return f"<p>Suspects:</p><ol>{items}</ol>" if items else "<p>Nothing stands out.</p>"


def _steps(document: Document) -> str:
    """Returns the table of the steps of the stretch."""
    states = {one["step"]: one["state"] for one in document["proof"].get("steps", ())}
    rows = [
        [
            f"{one['step']:,}",
            format_number(one["loss"], 5),
            format_number(one["grad_norm"]),
            f"{one['clipped_to']:.0%}",
            f"{one['learning_rate']:.3g}",
            states.get(one["step"], ""),
        ]
        for one in document.get("metrics", ())
        if one["step"] >= document["steps"][0]
    ]
    head = ["step", "loss", "gradient norm", "clipped to", "learning rate", "as recorded"]
    return table(head, rows)


def _arms(document: Document, key: str) -> list[Chart]:
    """Returns the chart of the losses of the run and of its arms; [] without arms."""
    if not (arms := document.get("arms", ())):
        return []
    losses = [(one["step"], one["loss"]) for one in document["metrics"]]
    curves = {"the run": losses} | {arm["name"]: arm["losses"] for arm in arms}
    traces = []
    for color, (name, points) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        numbers = np.array([np.nan if value is None else value for value in values], float)
        series = Series(np.array(steps, np.int64), np.zeros(len(steps)), numbers)
        traces.append(line(name, series, color))
    return [Chart(key, "What if", traces, {})]


def _closer(folder: Path, one: Document) -> str:
    """Returns an example with the loss of each token coloured, or its picture."""
    gradient = one.get("gradient")
    norm = "" if gradient is None else f"; gradient norm {gradient:.3g}, most in {one['layer']}"
    text = f"<p><b>{escape(one['words'])}</b>: loss {format_number(one['loss'])}{escape(norm)}</p>"
    if "texts" in one:
        pairs = list(zip(one["texts"], one["losses"], strict=True))
        tokens = "".join(_token(*pair) for pair in pairs[:MOST_TOKENS])
        more = f" The first {MOST_TOKENS:,} of {len(pairs):,}." if pairs[MOST_TOKENS:] else ""
        text += f"<pre>{tokens}</pre>"
        most, share = one.get("commonest", ("", 0.0))
        rare = ", ".join(f"{x['text']} ({x['count']:,})" for x in one.get("rare", ()))
        note = f"The commonest token is {most!r} ({share:.0%})." + more
        note += f" Rarest, with their counts in the epoch: {rare}." if rare else ""
        text += f'<p class="soft">{escape(note)}</p>'
    path = folder / one["picture"] if "picture" in one else None
    if path is not None and path.exists():
        data = base64.b64encode(path.read_bytes()).decode()
        caption = "image, seen patches, prediction, errors"
        text += (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f'<figcaption class="soft">{caption}</figcaption></figure>'
        )
    return text


def _token(text: str, loss: float | None) -> str:
    """Returns a token, the redder the higher its loss."""
    height = min((loss or 0.0) / _FULL, 1.0)
    style = f"background:rgba(200,50,40,{0.7 * height:.2f})"
    return f'<span style="{style}" title="{loss}">{escape(text)}</span>'


def _tables(document: Document) -> str:
    """Returns the losses by source, file, document and example."""
    text = ""
    for key in ("sources", "files"):
        rows = [
            [
                one["name"],
                f"{one['examples']:,}",
                f"{one['weight']:,.0f}",
                format_number(one["loss"]),
            ]
            for one in document.get(key, ())
        ]
        if rows:
            text += table([key[:-1], "examples", "tokens or patches", "loss"], rows)
    for key in ("examples", "documents"):
        rows = [
            [
                one["words"],
                format_number(one["loss"]),
                f"{one['repeated']:.0%}",
                ", ".join(f"{sample:,}" for sample in one.get("again", ())),
            ]
            for one in document.get(key, ())
        ]
        if rows:
            head = [f"{key} with the highest losses", "loss", "repeats itself", "also in samples"]
            text += table(head, rows)
    return text
