"""The texts of a report: verdict, figures of a run, findings, times, configs, names of metrics."""

import re
from collections.abc import Sequence
from datetime import datetime
from html import escape

import numpy as np

from jaxpretrain.checkpoints.rewind import read_rewinds
from jaxpretrain.config.serialize import diff
from jaxpretrain.devices.chips import GIB
from jaxpretrain.diagnosis.forecast import Forecast
from jaxpretrain.diagnosis.metric_names import evaluation_sets
from jaxpretrain.diagnosis.remaining import checks
from jaxpretrain.display.wording import count_of, format_count, format_number, format_seconds
from jaxpretrain.reports.curves import Chart
from jaxpretrain.reports.parts import table
from jaxpretrain.reports.replays import about, read_replays
from jaxpretrain.reports.runs import RunHistory

_CLASS = {None: "good", "info": "good", "warning": "warning", "error": "error"}
_JUDGEMENT = {None: "Healthy", "info": "Healthy", "warning": "Needs a look", "error": "In trouble"}

_WORDS = {
    "acc": "accuracy",
    "acc_uncond": "accuracy by pointwise mutual information",
    "bpb": "bits per byte of the right answer",
    "ce_loss": "nats per character of the right answer",
    "data_wait_fraction": "time spent waiting for data",
    "epochs": "epochs of the data",
    "f1": "F1 score",
    "host_spread": "time of the slowest process beyond the usual one, as a part of a step",
    "len_norm": "accuracy by likelihood per character",
    "loss_predict_zero": "loss of predicting zero",
    "max": "maximum",
    "mfu": "model FLOPs utilisation",
    "mfu_full_attention": "model FLOPs utilisation, all pairs of attention counted",
    "pmi_dc": "accuracy relative to the unconditional likelihood",
    "primary": "accuracy that the authors report",
    "rms": "root mean square",
    "skipped": "skipped steps",
    "slowest_host": "number of the slowest process",
    "soft": "probability of the right answer",
    "soft_log": "log-probability of the right answer",
    "weight": "positions that count in the loss",
    "z": "squared log-partition function (z)",
}
_SHARES = ("_fraction", "_spread", "mfu", "mfu_full_attention")


def verdict(run: RunHistory) -> str:
    """Returns the state of the run in a few sentences."""
    step, total = run.last_step, run.plan.total_steps
    phase, time, end = run.plan.phase(step), run.estimate, run.forecast
    where = f"Step {step:,} of {total:,} ({step / max(total, 1):.1%})"
    where += f", in the {escape(phase)} phase. " if phase and not run.is_finished else ". "
    if time and not run.is_finished:
        left, low, high = map(format_seconds, (time.remaining, time.low, time.high))
        where += f"{left} to go (between {low} and {high})"
        if run.is_quiet:
            where += " once the same command is run again."
        else:
            finish = datetime.fromtimestamp(time.finish)
            where += f", until {finish:%Y-%m-%d %H:%M} if it goes on without a stop."
    if end and not (end.doubts or run.is_finished or run.severity == "error"):
        where += f" {_expected(end)}"
    holding = [finding for finding in run.findings if not finding.is_over]
    pressing = [f for f in holding if f.severity != "info"] or holding
    said = " ".join(f"<b>{escape(f.title)}:</b> {escape(f.reading)}" for f in pressing[:3])
    said += f" And {len(pressing) - 3} more findings below." if len(pressing) > 3 else ""
    said += f" What to do: {escape(pressing[0].advice)}" if pressing else "Nothing to do."
    # A good end must not hide warnings that are over.
    past = [f.title.lower() for f in run.findings if f.is_over and f.severity != "info"]
    names = escape(", ".join(dict.fromkeys(past)))
    said += f" Over, but worth knowing: {names}; see the findings below." if past else ""
    return (
        f'<div class="verdict {_CLASS[run.severity]}"><strong>{judgement(run)}</strong>'
        f"<p>{where}</p><p>{said}</p></div>"
    )


def judgement(run: RunHistory) -> str:
    """Returns the verdict in a few words, such as `Healthy, finished`."""
    text = _JUDGEMENT[run.severity] if len(run.history.loss) else "Nothing to judge yet"
    if run.is_finished:
        return f"{text}, finished"
    if not run.is_quiet:
        return text
    silence = format_seconds(run.now - run.history.span[1])
    return f"{text}; stopped, it seems: nothing was written for {silence}"


def cards(run: RunHistory) -> str:
    """Returns the most important numbers of a run."""
    history, time, unit = run.history, run.estimate, run.history.unit
    shown: dict[str, str] = {}
    if len(history.loss):  # the last one, as in the terminal
        at = f"training loss at step {history.loss.steps[-1]:,}"
        shown[at] = format_number(history.loss.values[-1])
    for name in evaluation_sets(history)[:3]:
        if (bits := history.last(f"eval/{name}/bits_per_byte")) is not None:
            shown[f"bits per byte on {name}"] = format_number(bits)
        elif (loss := history.last(f"eval/{name}/loss")) is not None:
            shown[f"loss on {name}"] = format_number(loss)
    for label, name, show in (
        (f"{unit} seen", f"train/{unit}", format_count),
        (f"{unit} per second", f"perf/{unit}_per_second", format_count),
        ("MFU", "perf/mfu", "{:.1%}".format),
    ):
        if (value := history.last(name)) is not None:
            shown[label] = show(value)
    if time is not None:
        shown["time so far"] = format_seconds(time.spent)
        shown["device-hours in all"] = format_count(time.device_hours)
        # Training without waiting for data, relative to all time since the first line.
        goodput = (history.last("time/train_seconds") or 0.0) / (time.spent + run.lost_seconds)
        shown["goodput"] = f"{goodput:.0%}"
    body = "".join(
        f'<div class="card"><span class="soft">{escape(name)}</span><b>{escape(value)}</b></div>'
        for name, value in shown.items()
    )
    return f'<div class="cards">{body}</div>'


def findings(run: RunHistory, charts: Sequence[Chart]) -> str:
    """Returns the findings of a run with links into the curves; those that hold come first."""
    text, kept = "", read_replays(run.folder)
    for finding in sorted(run.findings, key=lambda f: (f.is_over, -f.first)):
        steps = f"steps {finding.first:,} to {finding.last:,}"
        if finding.first == finding.last:
            steps = f"step {finding.first:,}"
        if key := next((c.key for c in charts if finding.signal in c.signals), ""):
            steps = (
                f'<a href="#chart-{key}" data-plot="{key}" data-first="{finding.first}" '
                f'data-last="{finding.last}">{steps}</a>'
            )
        numbers = (f"{name} {value:.4g}" for name, value in finding.evidence.items())
        evidence = ", ".join(numbers).replace("_", " ")
        kind = "note" if finding.severity == "info" else finding.severity
        color = _CLASS[finding.severity]
        if finding.is_over:
            kind, color = f"{kind}, over", f"{color} over"
        text += (
            f'<div class="finding {color}"><h3>{escape(finding.title)}</h3>'
            f'<p class="soft">{kind}; {steps}</p>'
            f"<p>{escape(finding.reading)}</p><p>What to do: {escape(finding.advice)}</p>"
            f"{about(finding, run.folder, kept, run.history.step)}"
            f'<p class="soft">{escape(evidence)}</p></div>'
        )
    return text


def times(run: RunHistory) -> str:
    """Returns the time of the whole run, and earlier estimates beside it; "" where not known."""
    time = run.estimate
    if time is None:
        return ""
    devices = count_of(time.num_devices, "device")
    cost = f"{format_seconds(time.total)}, {format_count(time.device_hours)} device-hours"
    if run.is_finished:
        text = f"<p>The run took {cost} on {devices}.</p>"
    else:
        left, low, high = map(format_seconds, (time.remaining, time.low, time.high))
        text = (
            f"<p>{format_seconds(time.spent)} so far on {devices}; {left} to go, between {low} and "
            f"{high}, if it goes on at its mean pace. The whole run takes {cost}, "
            f"{time.factor:.1f} times the time so far.</p>"
        )
    if run.goodput is not None:
        text += f"<p>{escape(run.goodput.describe())}.</p>"
    rows = []
    for one in checks(run.history):
        estimate, actual = format_seconds(one.predicted), format_seconds(one.actual)
        rows.append([f"{one.step:,}", f"{one.until:,}", estimate, actual, f"{one.error:+.1%}"])
    if rows:
        text += "<p>Early estimates of the time, beside the actual time:</p>"
        text += table(["at step", "of the time until", "estimate", "actual", "error"], rows)
    return text


def planned(run: RunHistory) -> str:
    """Returns tables of the step's memory and of the numbers in `plan.json`; "" without either."""
    history, before, unit = run.history, run.planned, run.history.unit
    peaks = {place: history.last(f"perf/{place}_memory_gib") for place in ("device", "host")}
    text, rows = "", []
    if memory := run.document.get("memory"):
        sizes = {**memory, "in all": sum(memory.values())}
        parts = [[name, f"{size / GIB:.2f}"] for name, size in sizes.items()]
        known = {place: f"{peak:.2f}" for place, peak in peaks.items() if peak is not None}
        parts += [[f"most that was held on the {place}", peak] for place, peak in known.items()]
        text = table(["memory of the compiled step", "GiB per device"], parts)
    if rate := before.get(f"{unit}_per_second"):
        rates = history[f"perf/{unit}_per_second"].finite.values
        came = format_count(float(np.median(rates))) if len(rates) else "?"
        rows.append([f"{unit} per second", format_count(rate), came])
    if (hours := before.get("device_hours")) is not None:
        came = "?" if run.estimate is None else format_count(run.estimate.device_hours)
        rows.append(["device-hours of the whole run", format_count(hours), came])
    if (size := before.get("memory_bytes_per_device")) is not None:
        came = "?" if peaks["device"] is None else f"{peaks['device']:.2f}"
        rows.append(["GiB of a device", f"{size / GIB:.2f}", came])
    return text + (table(["", "planned", "measured"], rows) if rows else "")


def forecasts(run: RunHistory) -> str:
    """Returns the expected final loss, and earlier forecasts beside it."""
    text = ""
    if (end := run.forecast) and not run.is_finished:
        longer = [[f"{n:g} times the length", format_number(loss)] for n, loss in end.longer]
        text = f"<p>{_expected(end)}</p>{table(['a run of', 'would end at'], longer)}"
    ended = ""
    if run.is_finished and run.final_loss is not None:
        ended = f"; it ended at {format_number(run.final_loss)}, the mean of the last 10%"
    rows = []
    for one in run.earlier_forecasts:
        loss, low, high = map(format_number, (one.loss, one.low, one.high))
        rows.append([f"{one.step:,}", loss, f"{low} to {high}", "; ".join(one.doubts)])
    if rows:
        text += f"<p>Earlier forecasts of the final training loss{ended}:</p>"
        text += table(["at step", "loss", "90% interval", "doubts"], rows)
    return text


def _expected(one: Forecast) -> str:
    doubts = f" Do not trust it yet: {'; '.join(one.doubts)}." if one.doubts else ""
    loss, low, high = map(format_number, (one.loss, one.low, one.high))
    where = f"near {loss}, between {low} and {high} with 90% probability"
    return f"The training loss should end {where}.{doubts}"


def config(run: RunHistory) -> str:
    """Returns the resolved config, the versions and the command of a run."""
    rows = [
        [path, str(value)]
        for part in ("config", "versions")
        for path, _, value in diff({}, {part: run.document.get(part, {})})
    ]
    known = ("git_revision", "data_fingerprint", "command")
    rows += [[key, str(run.document[key])] for key in known if key in run.document]
    fields = table(["field", "value"], rows)
    return (
        f"<details><summary>All {len(rows)} values of experiment.json</summary>{fields}</details>"
    )


def interventions(run: RunHistory) -> str:
    """Returns what somebody has changed about the data and the course of a run; "" for nothing."""
    lines = [
        f"{rewind.time[:16].replace('T', ' ')}: went back from step {rewind.from_step:,} to "
        f"step {rewind.to_step:,}; what came after it is in abandoned/."
        for rewind in read_rewinds(run.folder)
    ]
    if skipped := (run.document.get("config") or {}).get("data", {}).get("skip"):
        lines.append(f"Samples {', '.join(map(str, skipped))} of the data are left out.")
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def samples(run: RunHistory) -> str:
    """Returns the sampled texts, the latest first."""
    text = ""
    for record in reversed(run.samples):
        values = (value for value in record.values() if isinstance(value, str))
        texts = "".join(f"<pre>{escape(value)}</pre>" for value in values)
        is_open = "" if text else " open"
        text += f"<details{is_open}><summary>step {record['step']:,}</summary>{texts}</details>"
    return text


def words(name: str) -> str:
    """Returns the last part of a metric's name in words, such as `host memory, GiB`."""
    last = name.rpartition("/")[2]
    if probe := re.fullmatch(r"probe_(\d+)shot", last):
        return f"accuracy of a linear probe, images per class: {probe[1]}"
    by_v2 = last.removesuffix("_v2")
    if by_v2 != last:
        return f"{words(by_v2)}, first space counted"
    return re.sub("_gib$", ", GiB", _WORDS.get(last, last)).replace("_", " ")


def title(name: str) -> str:
    """Returns the title of a chart of one metric, such as `Loss of wiki` for `train/wiki/loss`."""
    text = words(name)
    of = " ".join(name.split("/")[1:-1]).replace("_", " ")
    return text[:1].upper() + text[1:] + (f" of {of}" if of else "")


def tick_format(name: str) -> str:
    """Returns the format of the values of a metric, in the notation of D3: shares are percent."""
    return ".3~%" if name.endswith(_SHARES) else ""
