"""The texts of a report: verdict, figures of a run, findings, times, forecasts, configs."""

from collections.abc import Sequence
from datetime import datetime
from html import escape

from jaxpretrain.config.serialize import diff
from jaxpretrain.diagnosis.clock import PARTS
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.diagnosis.forecast import Forecast
from jaxpretrain.diagnosis.metric_names import evaluation_sets
from jaxpretrain.display.wording import count_of, format_count, format_number, format_seconds
from jaxpretrain.reports.curves import Chart
from jaxpretrain.reports.runs import Run

_CLASS = {None: "good", "info": "good", "warning": "warning", "error": "error"}
_JUDGEMENT = {None: "Healthy", "info": "Healthy", "warning": "Needs a look", "error": "In trouble"}
_PART_NAMES = {"data_wait": "waiting for data", "eval": "evaluation", "save": "saving"}


def verdict(run: Run) -> str:
    """Returns the state of the run in a few sentences."""
    step, total = run.history.step, run.plan.total_steps
    phase = run.plan.phase(step)
    where = f"Step {step:,} of {total:,} ({step / max(total, 1):.1%})"
    where += f", in the {escape(phase)} phase. " if phase and not run.is_finished else ". "
    holding = [finding for finding in run.findings if not finding.is_over]
    pressing = [f for f in holding if f.severity != "info"] or holding
    said = " ".join(f"<b>{escape(f.title)}:</b> {escape(f.reading)}" for f in pressing[:3])
    more = f" And {len(pressing) - 3} more findings below." if len(pressing) > 3 else ""
    advice = f" What to do: {escape(pressing[0].advice)}" if pressing else "Nothing to do."
    advice += _past(run)
    return (
        f'<div class="verdict {_CLASS[run.severity]}"><strong>{judgement(run)}</strong>'
        f"<p>{where}{_time_left(run)}{_end(run)}</p><p>{said}{more}{advice}</p></div>"
    )


def _past(run: Run) -> str:
    """Returns a sentence about warnings that are over; a good end must not hide them."""
    titles = [f.title.lower() for f in run.findings if f.is_over and f.severity != "info"]
    names = escape(", ".join(dict.fromkeys(titles)))
    return f" Over, but worth knowing: {names}; see the findings below." if names else ""


def judgement(run: Run) -> str:
    """Returns the verdict in a few words, such as `Healthy, finished`."""
    text = _JUDGEMENT[run.severity]
    if run.is_finished:
        return f"{text}, finished"
    if not run.is_quiet:
        return text
    silence = format_seconds(run.now - run.history.span[1])
    return f"{text}; stopped, it seems: nothing was written for {silence}"


def _time_left(run: Run) -> str:
    time = run.estimate
    if time is None or run.is_finished:
        return ""
    finish = datetime.fromtimestamp(time.finish)
    return (
        f"{format_seconds(time.remaining)} to go (between {format_seconds(time.low)} and "
        f"{format_seconds(time.high)}), until {finish:%Y-%m-%d %H:%M} if it goes on without a stop."
    )


def _end(run: Run) -> str:
    one = run.forecast
    if one is None or one.doubts or run.is_finished or run.severity == "error":
        return ""
    return f" {_expected(one)}"


def cards(run: Run) -> str:
    """Returns the most important numbers of a run."""
    history, time = run.history, run.estimate
    shown: list[tuple[str, str]] = []
    if len(history.loss):  # the last one, as in the terminal
        at = f"training loss at step {history.loss.steps[-1]:,}"
        shown.append((at, format_number(history.loss.values[-1])))
    for name in evaluation_sets(history)[:3]:
        if (bits := history.last(f"eval/{name}/bits_per_byte")) is not None:
            shown.append((f"bits per byte on {name}", format_number(bits)))
        elif (loss := history.last(f"eval/{name}/loss")) is not None:
            shown.append((f"loss on {name}", format_number(loss)))
    if (units := history.last(f"train/{history.unit}")) is not None:
        shown.append((f"{history.unit} seen", format_count(units)))
    if (rate := history.last(f"perf/{history.unit}_per_second")) is not None:
        shown.append((f"{history.unit} a second", format_count(rate)))
    if (mfu := history.last("perf/mfu")) is not None:
        shown.append(("MFU", f"{mfu:.1%}"))
    if time is not None:
        shown.append(("time so far", format_seconds(time.spent)))
        shown.append(("device-hours in all", format_count(time.device_hours)))
        # Training without waiting for data, relative to all time since the first line.
        goodput = (history.last("time/train_seconds") or 0.0) / (time.spent + run.lost_seconds)
        shown.append(("goodput", f"{goodput:.0%}"))
    body = "".join(
        f'<div class="card"><span class="soft">{escape(name)}</span><b>{escape(value)}</b></div>'
        for name, value in shown
    )
    return f'<div class="cards">{body}</div>'


def hours(run: Run) -> list[tuple[str, float]]:
    """Returns the seconds of each part of the time."""
    parts = [(part, run.history.last(f"time/{part}_seconds")) for part in PARTS]
    found = [(_PART_NAMES.get(p, p), seconds) for p, seconds in parts if seconds is not None]
    return [*found, ("lost to restarts", run.lost_seconds)] if found else []


def findings(run: Run, charts: Sequence[Chart]) -> str:
    """Returns all findings of a run, each with a link into a curve; those that hold come first.

    Returns "" without findings.
    """
    ordered = sorted(run.findings, key=lambda f: (f.is_over, -f.first))
    return "".join(_finding(finding, charts) for finding in ordered)


def _finding(finding: Finding, charts: Sequence[Chart]) -> str:
    chart = next((c for c in charts if finding.signal in c.signals), None)
    steps = f"steps {finding.first:,} to {finding.last:,}"
    if finding.first == finding.last:
        steps = f"step {finding.first:,}"
    if chart is not None:
        steps = (
            f'<a href="#chart-{chart.key}" data-plot="{chart.key}" data-first="{finding.first}" '
            f'data-last="{finding.last}">{steps}</a>'
        )
    numbers = (f"{name} {value:.4g}" for name, value in finding.evidence.items())
    evidence = ", ".join(numbers).replace("_", " ")
    state = " over" if finding.is_over else ""
    kind = "note" if finding.severity == "info" else finding.severity
    return (
        f'<div class="finding {_CLASS[finding.severity]}{state}"><h3>{escape(finding.title)}</h3>'
        f'<p class="soft">{kind}{", over" if finding.is_over else ""}; {steps}</p>'
        f"<p>{escape(finding.reading)}</p><p>What to do: {escape(finding.advice)}</p>"
        f'<p class="soft">{escape(evidence)}</p></div>'
    )


def times(run: Run) -> str:
    """Returns the time of the whole run, and earlier estimates beside it; "" where not known."""
    time = run.estimate
    if time is None:
        return ""
    cost = f"{format_seconds(time.total)}, {format_count(time.device_hours)} device-hours"
    if run.is_finished:
        text = f"<p>The run took {cost} on {count_of(time.num_devices, 'device')}.</p>"
    else:
        text = (
            f"<p>{format_seconds(time.spent)} so far on {count_of(time.num_devices, 'device')}; "
            f"{format_seconds(time.remaining)} to go, between {format_seconds(time.low)} and "
            f"{format_seconds(time.high)}, if it goes on at its mean pace. The whole run takes "
            f"{cost}, {time.factor:.1f} times the time so far.</p>"
        )
    rows = [
        [
            f"{c.step:,}",
            f"{c.until:,}",
            *map(format_seconds, (c.predicted, c.actual)),
            f"{c.error:+.1%}",
        ]
        for c in run.checks
    ]
    if rows:
        text += "<p>Early estimates of the time, beside the actual time:</p>"
        text += table(["at step", "of the time until", "estimate", "actual", "error"], rows)
    return text


def forecasts(run: Run) -> str:
    """Returns the expected final loss, and earlier forecasts beside it."""
    text = ""
    if run.forecast is not None and not run.is_finished:
        text = f"<p>{_expected(run.forecast)}</p>" + table(
            ["a run of", "would end at"],
            [[f"{n:g} times the length", format_number(loss)] for n, loss in run.forecast.longer],
        )
    end = ""
    if run.is_finished and run.final_loss is not None:
        end = f"; it ended at {format_number(run.final_loss)}, the mean of the last 5%"
    rows = [
        [f"{one.step:,}", format_number(one.loss), _interval(one, "to"), "; ".join(one.doubts)]
        for one in run.earlier_forecasts
    ]
    if rows:
        text += f"<p>Earlier forecasts of the final training loss{end}:</p>"
        text += table(["at step", "loss", "90% interval", "doubts"], rows)
    return text


def _expected(one: Forecast) -> str:
    doubts = f" Do not trust it yet: {'; '.join(one.doubts)}." if one.doubts else ""
    return (
        f"The training loss should end near {format_number(one.loss)}, between "
        f"{_interval(one, 'and')} with 90% probability.{doubts}"
    )


def _interval(one: Forecast, word: str) -> str:
    return f"{format_number(one.low)} {word} {format_number(one.high)}"


def config(run: Run) -> str:
    """Returns the resolved config, the versions and the command of a run."""
    rows = [
        [path, str(value)]
        for part in ("config", "versions")
        for path, _, value in diff({}, {part: run.document.get(part, {})})
    ]
    known = ("git_revision", "data_fingerprint", "command")
    rows += [[key, str(run.document[key])] for key in known if key in run.document]
    fields = table(["field", "value"], rows)
    return f"<details><summary>All {len(rows)} fields</summary>{fields}</details>"


def samples(run: Run) -> str:
    """Returns the sampled texts, the latest first."""
    parts = []
    for record in reversed(run.samples):
        texts = [value for value in record.values() if isinstance(value, str)]
        is_open = " open" if not parts else ""
        body = "".join(f"<pre>{escape(text)}</pre>" for text in texts)
        parts.append(
            f"<details{is_open}><summary>step {record['step']:,}</summary>{body}</details>"
        )
    return "".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table of plain text."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
