"""What an evaluation says to people and to files: a table, a JSON document, CSV, predictions."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxpretrain.display.wording import EVAL_DIGITS, format_number
from jaxpretrain.evals.downstream import Report, left_out
from jaxpretrain.evals.tasks.metrics import NUM_ITEMS, NUM_LEFT_OUT, NUM_TRUNCATED, RANDOM

Perplexities = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Outcome:
    """Of one checkpoint."""

    step: int
    report: Report | None = None
    """None: no tasks were asked for."""
    perplexity: Perplexities = field(default_factory=dict)
    harness: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of the tasks of lm-evaluation-harness, by its names."""
    own: Mapping[str, float | None] = field(default_factory=dict)
    """By the names that the run itself gives: `eval/<set>/loss`."""
    weights: str | None = None
    """Which weights these are of a run that keeps their average too: `plain` or `average`."""

    def document(self) -> dict[str, Any]:
        """{"step", "own", "tasks": {task: {metric: value}}, "groups", "harness", "perplexity",
        "speed"}; numbers that are not finite, which JSON cannot say, are None.
        """
        report = self.report
        tasks = {} if report is None else {r.task.name: r.metrics for r in report.tasks}
        groups = {} if report is None else report.groups
        speed = None
        if report is not None:
            speed = {
                "seconds": report.speed.seconds,
                "num_requests": report.speed.num_requests,
                "num_tokens": report.speed.num_tokens,
                "requests_per_second": report.speed.requests_per_second,
                "tokens_per_second": report.speed.tokens_per_second,
            }
        document = {
            "step": self.step,
            **({} if self.weights is None else {"weights": self.weights}),
            "own": dict(self.own),
            "tasks": tasks,
            "groups": groups,
            "harness": {task: dict(metrics) for task, metrics in self.harness.items()},
            "perplexity": self.perplexity,
            "speed": speed,
        }
        return _finite(document)

    def table(self) -> str:
        """Lines for the terminal."""
        own = _aligned([(name, _number(value)) for name, value in self.own.items()])
        harness = _aligned(self._harness_rows())
        lines = [*self._task_lines(), *harness, *self._set_lines(), *own]
        weights = "" if self.weights is None else f", {self.weights} weights"
        return "\n".join([f"step {self.step:,}{weights}", *lines])

    def predictions(self) -> Iterator[str]:
        """A JSON object for each item: what was chosen by each accuracy, and the likelihoods."""
        for result in [] if self.report is None else self.report.tasks:
            for scored in result.scored:
                given = scored.unconditional
                chosen = {name: int(r.argmax()) for name, r in scored.rankings().items()}
                row = {
                    "step": self.step,
                    "task": result.task.name,
                    "item": scored.item.name,
                    "answer": scored.item.answer,
                    "chosen": chosen if len(scored.item.choices) > 1 else None,
                    "continuations": [choice.continuation for choice in scored.item.choices],
                    "log_likelihoods": scored.conditional.tolist(),
                    "unconditional": None if given is None else given.tolist(),
                }
                yield json.dumps(row, ensure_ascii=False)

    def _task_lines(self) -> Iterator[str]:
        if self.report is None:
            return
        titles = ("task", "items", "metric", "value", "stderr", "random", "bpb")
        rows: list[tuple[str, ...]] = [titles]
        for result in self.report.tasks:
            metrics, metric = result.metrics, result.task.metric
            rows.append(
                (
                    result.task.name,
                    f"{metrics[NUM_ITEMS]:,}",
                    metric,
                    _number(metrics["primary"]),
                    _number(metrics.get(f"{metric}_stderr")),
                    _number(metrics.get(RANDOM)),
                    _number(metrics["bpb"]),
                )
            )
        for group, means in self.report.groups.items():
            mean, guess = _number(means.get("primary")), _number(means.get(RANDOM))
            rows.append((f"mean of {group}", "", "", mean, "", guess, _number(means["bpb"])))
        yield from _aligned(rows)
        for result in self.report.tasks:
            if truncated := result.metrics[NUM_TRUNCATED]:
                yield f"{result.task.name}: {truncated} prompts were too long and lost their start"
            if number := int(result.metrics[NUM_LEFT_OUT]):
                yield left_out(result.task.name, number)
        speed = self.report.speed
        yield (
            f"{speed.num_requests:,} requests in {speed.seconds:.1f} s: "
            f"{speed.requests_per_second:,.0f} requests/s, {speed.tokens_per_second:,.0f} tokens/s"
        )

    def _harness_rows(self) -> list[tuple[str, ...]]:
        rows = [
            (task, metric, _number(value))
            for task, metrics in self.harness.items()
            for metric, value in metrics.items()
        ]
        return [("harness", "metric", "value"), *rows] if rows else []

    def _set_lines(self) -> Iterator[str]:
        if not self.perplexity:
            return
        names = ("loss", "perplexity", "bits_per_byte", "num_tokens", "olmo_loss")
        rows: list[tuple[str, ...]] = [("set", *names)]
        for name, metrics in self.perplexity.items():
            rows.append((name, *(_number(metrics[key]) for key in names)))
        yield from _aligned(rows)


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """A line for each number: step, kind, name, metric, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "kind", "name", "metric", "value"))
    for outcome in outcomes:
        document = outcome.document()
        for kind in ("tasks", "groups", "harness", "perplexity"):
            for name, metrics in document[kind].items():
                for metric, value in metrics.items():
                    writer.writerow((outcome.step, kind, name, metric, value))
        for name, value in outcome.own.items():
            writer.writerow((outcome.step, "own", *name.removeprefix("eval/").split("/", 1), value))
    return text.getvalue()


def _finite(value: Any) -> Any:
    """A document with None for each number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else format_number(value, EVAL_DIGITS)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()
