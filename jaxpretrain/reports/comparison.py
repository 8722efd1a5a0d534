"""The comparison of several runs: one table, to sort on the page or to save as CSV."""

import csv
import io
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from jaxpretrain.diagnosis.metric_names import evaluation_sets
from jaxpretrain.display.wording import format_count, format_number, format_seconds
from jaxpretrain.reports.parts import table
from jaxpretrain.reports.runs import Group, RunHistory, differences, grouped, named
from jaxpretrain.reports.words import judgement

MOST_FIELDS = 8
"""The largest number of different fields in the table; more stand below it."""


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    title: str
    values: Sequence[Any]
    """The value of each run; None where there is none."""
    show: Callable[[Any], str] = str
    is_loss: bool = False

    def cell(self, value: Any) -> str:
        """Returns a value as a cell that is sorted by all its digits."""
        shown = "" if value is None else escape(self.show(value))
        return f'<td data-value="{escape(str(value))}">{shown}</td>' if shown else "<td></td>"


def comparison(runs: Sequence[RunHistory]) -> str:
    """Returns the table of the runs, the means of groups and the fields beyond the table."""
    groups, changed = grouped(runs), differences(runs)
    columns = [c for c in _columns(runs) if len(changed) <= MOST_FIELDS or c.title not in changed]
    endings = Counter(path.rpartition(".")[2] for path in changed)
    heads = ""
    for path in (column.title for column in columns):
        last = path.rpartition(".")[2]
        text = escape(path if endings[last] > 1 else last)
        heads += f'<th scope="col"><button title="{escape(path)}">{text}</button></th>'
    colors = {place: json.dumps(group.color) for group in groups for place in group.places}
    names = [
        f'<th scope="row"><i class="dot" data-color="{escape(colors[place])}"></i>'
        f'<a href="#run-{place}">{escape(run.name)}</a></th>'
        for place, run in enumerate(runs)
    ]
    cells = zip(names, *(map(column.cell, column.values) for column in columns[1:]), strict=True)
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    file = b64encode(as_csv(runs).encode()).decode()
    text = (
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p><a download="runs.csv" href="data:text/csv;base64,{file}">Save as CSV</a></p>'
    )
    if len(changed) > MOST_FIELDS:
        names = ["field", *(run.name for run in runs)]
        fields = table(names, [[path, *map(str, values)] for path, values in changed.items()])
        text += f"<details><summary>{len(changed)} fields differ</summary>{fields}</details>"
    return text + _means(groups, columns)


def as_csv(runs: Sequence[RunHistory]) -> str:
    """Returns the table as CSV, with all digits and all fields in which the configs differ."""
    columns = _columns(runs)
    rows = zip(*([column.title, *column.values] for column in columns), strict=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _columns(runs: Sequence[RunHistory]) -> list[Column]:
    made = [Column("run", [run.name for run in runs])]
    made += [Column(path, values) for path, values in differences(runs).items()]
    final = [run.final_loss for run in runs]
    made.append(Column("training loss, last 10%", final, format_number, is_loss=True))
    for name in named(runs, evaluation_sets):
        curves = [run.history[f"eval/{name}/loss"].finite.values for run in runs]
        for what, pick in (("final", lambda losses: losses[-1]), ("best", np.min)):
            values = [float(pick(losses)) if len(losses) else None for losses in curves]
            made.append(Column(f"{name} loss, {what}", values, format_number, is_loss=True))
    for unit in dict.fromkeys(run.history.unit for run in runs):
        made.append(Column(unit, [r.history.last(f"train/{unit}") for r in runs], format_count))
    spent = [run.estimate.spent if run.estimate else None for run in runs]
    made.append(Column("time", spent, format_seconds))
    return [*made, Column("verdict", [judgement(run) for run in runs])]


def _means(groups: Sequence[Group], columns: Sequence[Column]) -> str:
    """Returns the table of the mean losses of groups, with their standard deviations."""
    losses, rows = [column for column in columns if column.is_loss], []
    for group in groups:
        row = [group.name.rpartition(", mean")[0] or "all", str(len(group.runs))]
        for column in losses:
            known = [x for place in group.places if (x := column.values[place]) is not None]
            text = ""
            if len(known) > 1:
                mean, deviation = float(np.mean(known)), float(np.std(known, ddof=1))
                text = f"{format_number(mean)} ± {format_number(deviation, 3)}"
            row.append(text)
        rows += [row] if len(group.runs) > 1 else []
    fields = table(["config", "runs", *(column.title for column in losses)], rows)
    return f"<h3>Equal configs: mean ± standard deviation</h3>{fields}" if rows else ""
