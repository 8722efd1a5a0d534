"""The answer of a sweep in words, as a table for the terminal, and as CSV."""

import csv
import io
from collections.abc import Sequence
from statistics import median, median_high
from typing import Any

from jaxpretrain.config.serialize import Document
from jaxpretrain.display.wording import count_of, format_number, format_signed, format_table
from jaxpretrain.reports.sweep import arm_rows, format_p
from jaxpretrain.sweeps.outcomes import are_losses_comparable, is_loss
from jaxpretrain.sweeps.statistics import MOST_SEEDS

COLUMNS = 100
"""The largest number of columns of the table."""
_MOST_SENTENCES = 8
_FIELDS = (
    "mean",
    "stderr",
    "n",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "pairs",
    "detectable",
    "seeds_for_0.1_percent",
)


def words(document: Document) -> list[str]:
    """Returns the answer in sentences: the verdicts, what could have been seen, and warnings."""
    metric, control = document["metric"], document["control"]
    others = [arm for arm in document["arms"] if arm["name"] != control]
    known = [arm for arm in others if metric in arm["metrics"]]
    base = next(arm for arm in document["arms"] if arm["name"] == control)
    if not known or metric not in base["metrics"]:
        which = f"the control {control} has" if known else "no arm and the control have"
        return [f"No comparison yet: {which} no finished run.", *_notes(document)]
    reason = document.get("control_reason")
    tuned = ", ".join(f"{path}={value}" for path, value in base["tuned"])
    at_best = f", at its best {tuned}," * bool(tuned)
    lines = [f"Compared with {control}{f' ({reason})' if reason else ''}{at_best} by {metric}."]
    if not are_losses_comparable(document):
        lines.append(
            "The losses of these arms measure different things, so a lower one is not better."
        )
        if is_loss(metric):
            return [*lines, "Add a task or a probe (`eval`) to compare them by.", *_notes(document)]
    tested = [arm["metrics"][metric] for arm in known]
    tested = [found for found in tested if found["p_holm"] is not None]
    if tested and not any(found["verdict"] == "better" for found in tested):
        lines.append("No arm is better than the control by more than the noise.")
    order = ("better", "worse", "no_difference")
    found = {arm["name"]: arm["metrics"][metric] for arm in known}
    known.sort(key=lambda arm: -abs(found[arm["name"]]["difference"] or 0.0))
    known.sort(key=lambda arm: order.index(found[arm["name"]]["verdict"]))
    lines += [_sentence(arm, metric, document) for arm in known[:_MOST_SENTENCES]]
    if hidden := known[_MOST_SENTENCES:]:
        kinds = [found[arm["name"]]["verdict"] for arm in hidden]
        counts = [f"{kinds.count(k)} {k.replace('_', ' ')}" for k in order if k in kinds]
        lines.append(f"And {count_of(len(hidden), 'arm')} more: {', '.join(counts)}.")
    lines += [*_other_metrics(known, metric, document), *_sight(known, metric, document)]
    return [*lines, *_notes(document)]


def _sentence(arm: Document, metric: str, document: Document) -> str:
    """Returns the verdict about an arm, with what else is not equal."""
    name, found = arm["name"], arm["metrics"][metric]
    difference, control = found["difference"], document["control"]
    if found["p_holm"] is None:
        text = f"{name} has {count_of(found['pairs'], 'pair')} of runs, too few for an interval"
    else:
        seen = (
            f"{_signed(difference)} (95 % interval {_signed(found['low'])} to "
            f"{_signed(found['high'])}, p {format_p(found['p_holm'])})"
        )
        text = f"{name} is {found['verdict']} than {control}: {seen}"
        if found["difference"] == found["detectable"] == 0:
            text = f"{name} ends as {control} in every seed: what it changes has no effect here"
        elif found["verdict"] == "no_difference":
            size = format_number(found["detectable"], 4)
            text = f"{name}: no difference larger than {size} could be seen: {seen}"
    tuned = ", ".join(f"{path}={value}" for path, value in arm["tuned"])
    text += f"; at its best {tuned}" if tuned else ""
    unequal = [line.partition(": ")[2] for line in _unequal(name, document)]
    return f"{text}; {'; '.join(unequal)}." if unequal else f"{text}."


def _unequal(arm: str, document: Document) -> list[str]:
    lines = document.get("differences", [])
    return [line for line in lines if line.startswith((f"{arm}:", f"{arm}/"))]


def _other_metrics(arms: Sequence[Document], metric: str, document: Document) -> list[str]:
    names = dict.fromkeys(name for arm in arms for name in arm["metrics"] if name != metric)
    lines = []
    for name in names:
        if is_loss(name) and not are_losses_comparable(document):
            continue
        for verdict in ("better", "worse"):
            of = [a["name"] for a in arms if a["metrics"].get(name, {}).get("verdict") == verdict]
            if of:
                shown = ", ".join(of[:_MOST_SENTENCES]) + ", ..." * (len(of) > _MOST_SENTENCES)
                lines.append(f"By {name}, {verdict}: {shown}.")
    return lines


def _sight(arms: Sequence[Document], metric: str, document: Document) -> list[str]:
    """Returns the sentence about the differences that these seeds could show."""
    rows = [arm["metrics"][metric] for arm in arms]
    sizes = [row["detectable"] for row in rows if row["detectable"]]
    if not sizes:
        return []
    level = next(a for a in document["arms"] if a["name"] == document["control"])["metrics"]
    mean, pairs = level[metric]["mean"], max(row["pairs"] for row in rows)
    size = median(sizes)
    part = f", {size / abs(mean):.2%} of the control's {format_number(mean, 5)}" if mean else ""
    text = (
        f"Such {count_of(pairs, 'pair')} of runs show a difference of {format_number(size)}{part}"
    )
    needed = [row["seeds_for_0.1_percent"] for row in rows if row["seeds_for_0.1_percent"]]
    seeds = median_high(needed) if needed else 0
    more = "more than " * (seeds >= MOST_SEEDS)
    more = f"; 0.1 % would take {more}{seeds:,} seeds" if needed else ""
    return [f"{text}, in four of five sweeps{more}."]


def _notes(document: Document) -> list[str]:
    return [f"Warning: {line}." for line in document.get("warnings", [])]


def table(document: Document) -> str:
    """Returns a block of lines for each metric, with a row for each arm that has it."""
    names = dict.fromkeys(name for arm in document["arms"] for name in arm["metrics"])
    return "\n\n".join("\n".join(_block(name, document)) for name in names)


def _block(metric: str, document: Document) -> list[str]:
    head = (metric, "mean", "stderr", "n", "difference", "95 % interval", "p", "verdict")
    arms = document["arms"]
    results = {arm["name"]: arm["metrics"][metric] for arm in arms if metric in arm["metrics"]}
    rows = [head, *arm_rows(results, document["control"])]
    rest = max(map(len, format_table([("", *row[1:]) for row in rows])))
    return list(format_table([(cut(row[0], COLUMNS - rest), *row[1:]) for row in rows]))


def cut(name: str, width: int) -> str:
    """Returns a name without its middle where it is too long."""
    if len(name) <= width:
        return name
    end = (width - 3) // 2
    return f"{name[: width - 3 - end]}...{name[-end:]}"


def to_csv(document: Document) -> str:
    """Returns a row for each arm and metric, with all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "overrides", "metric", *_FIELDS])
    for arm in document["arms"]:
        settings = [*arm["overrides"], *arm.get("tuned", ())]
        shown = " ".join(f"{path}={value}" for path, value in settings)
        for name, found in arm.get("metrics", {}).items():
            values: list[Any] = [found.get(field) for field in _FIELDS]
            writer.writerow([arm["name"], shown, name, *values])
    return text.getvalue()


def _signed(value: float | None) -> str:
    return format_signed(value, 4)
