"""Multiple-choice and likelihood tasks, in the loop and from the command line.

All tasks are read, tokenised and planned when the evaluator is built, so that what cannot be
evaluated is refused at the start and an evaluation is nothing but forward passes.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from jaxpretrain.display.wording import Row, format_table
from jaxpretrain.evals.contract import Evaluator, Items, Results, Setting
from jaxpretrain.evals.scoring.encode import TextEncoder, encode_task
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.evals.tasks.catalogue import Selection, select
from jaxpretrain.evals.tasks.metrics import (
    NUM_ITEMS,
    NUM_LEFT_OUT,
    NUM_TRUNCATED,
    RANDOM,
    Scored,
    task_metrics,
)
from jaxpretrain.evals.tasks.task import Item, Task
from jaxpretrain.models.contract import Params

_LOGGED = ("acc", "len_norm", "pmi_dc", "f1", "ce_loss", "bpb", "soft", "soft_log", RANDOM)
"""The metrics of a task that the loop logs, beside the standard error of its own metric."""


@dataclass(frozen=True)
class TaskResult:
    """The results of one task."""

    task: Task
    metrics: dict[str, float]
    scored: list[Scored]

    def predictions(self) -> Iterator[dict[str, object]]:
        """Yields the choice by each accuracy and the likelihoods of each item."""
        for scored in self.scored:
            item, without = scored.item, scored.unconditional
            chosen = {name: int(r.argmax()) for name, r in scored.rankings().items()}
            yield {
                "task": self.task.name,
                "item": item.name,
                "answer": item.answer,
                "chosen": chosen if len(item.choices) > 1 else None,
                "continuations": [choice.continuation for choice in item.choices],
                "log_likelihoods": scored.conditional.tolist(),
                "unconditional": None if without is None else without.tolist(),
            }


@dataclass(frozen=True)
class Report:
    """The results of all tasks with one set of parameters."""

    tasks: list[TaskResult]
    groups: dict[str, dict[str, float]]
    """Means over the tasks of each group, by its name."""
    speed: dict[str, float]
    """Seconds without compilation, and requests and tokens (without padding): all and a second."""

    def items(self) -> Items:
        """Returns the metrics of tasks and groups, the speed, and the predictions."""
        metrics = {result.task.name: result.metrics for result in self.tasks}
        document = {"tasks": metrics, "groups": self.groups, "speed": self.speed}
        predictions = (row for result in self.tasks for row in result.predictions())
        return Items(document, [*self._table()], predictions)

    def _table(self) -> Iterator[str]:
        """Yields a row for each task and group, warnings, and the speed."""
        rows: list[Row] = [("task", "items", "metric", "value", "stderr", "random", "bpb")]
        for result in self.tasks:
            metric = result.task.metric
            names = ("primary", f"{metric}_stderr", RANDOM, "bpb")
            numbers = map(result.metrics.get, names)
            rows.append((result.task.name, result.metrics[NUM_ITEMS], metric, *numbers))
        for group, means in self.groups.items():
            mean, guess = means.get("primary"), means.get(RANDOM)
            rows.append((f"mean of {group}", "", "", mean, "", guess, means["bpb"]))
        yield from format_table(rows)
        for result in self.tasks:
            if truncated := result.metrics[NUM_TRUNCATED]:
                yield f"{result.task.name}: {truncated} prompts were too long and lost their start"
            if num_left_out := int(result.metrics[NUM_LEFT_OUT]):
                yield _left_out(result.task.name, num_left_out)
        yield (
            "{num_requests:,} requests in {seconds:.1f} s: {requests_per_second:,.0f} requests/s, "
            "{tokens_per_second:,.0f} tokens/s".format(**self.speed)
        )

    def scalars(self) -> dict[str, float | None]:
        """Returns `eval/<task>/<metric>`, `eval/<group>/<mean>` and the speed."""
        scalars: dict[str, float | None] = {}
        for result in self.tasks:
            metrics = result.metrics
            logged = [*_LOGGED, f"{result.task.metric}_stderr"]
            logged += [NUM_LEFT_OUT] if metrics[NUM_LEFT_OUT] else []
            named = {name: metrics[name] for name in logged if name in metrics}
            scalars |= {f"eval/{result.task.name}/{name}": x for name, x in named.items()}
        for group, means in self.groups.items():
            scalars |= {f"eval/{group}/{name}": mean for name, mean in means.items()}
        for name in ("requests_per_second", "tokens_per_second"):
            scalars[f"perf/eval_{name}"] = self.speed[name]
        return scalars


@dataclass(frozen=True)
class _Planned:
    """A task with its places in the list of all requests."""

    task: Task
    requests: slice
    num_left_out: int


class Downstream(Evaluator):
    """Scores tasks. Raises InputError where a text has no tokens, or no item of a task fits."""

    def __init__(self, scorer: Scorer, encode: TextEncoder, selection: Selection) -> None:
        self._scorer = scorer
        self._groups = selection.groups
        self._tasks: list[_Planned] = []
        requests = []
        for task in selection.tasks:
            fitting, *asked = encode_task(task, encode, scorer.context_length)
            start = len(requests)
            requests += chain(*asked)
            num_left_out = len(task.items) - len(fitting.items)
            self._tasks.append(_Planned(fitting, slice(start, len(requests)), num_left_out))
        self._packed = scorer.plan(requests)

    @classmethod
    def of_names(cls, setting: Setting, names: Sequence[str]) -> "Downstream":
        """Returns the evaluator of tasks and groups by name, for the field `eval.tasks`."""
        tokenizer = setting.require_task_tokenizer("eval.tasks")
        selection = select(names).take(setting.task_items, setting.task_seed)
        setting.require_other_names(selection.names, "eval.tasks")
        scorer = setting.scorer
        return cls(scorer, TextEncoder(tokenizer, scorer.vocab_size), selection)

    def notes(self) -> list[str]:
        """Returns a line for each task of which items are left out."""
        return [_left_out(t.task.name, t.num_left_out) for t in self._tasks if t.num_left_out]

    def compile(self) -> None:
        """Compiles a program for each shape of batches."""
        self._scorer.compile(self._packed)

    def report(self, params: Params) -> Report:
        """Scores everything."""
        start = time.perf_counter()
        log_likelihoods = self._scorer(params, self._packed).log_likelihoods
        seconds = time.perf_counter() - start
        tasks = [self._result(planned, log_likelihoods) for planned in self._tasks]
        num_requests, num_tokens = self._packed.num_requests, self._packed.num_tokens
        speed = {
            "seconds": seconds,
            "num_requests": num_requests,
            "num_tokens": num_tokens,
            "requests_per_second": num_requests / seconds,
            "tokens_per_second": num_tokens / seconds,
        }
        by_name = {result.task.name: result for result in tasks}
        groups = {
            group: _means([by_name[name] for name in names])
            for group, names in self._groups.items()
        }
        return Report(tasks, groups, speed)

    def __call__(self, params: Params) -> Results:
        """Returns the numbers that are logged, and the report."""
        report = self.report(params)
        return Results(scalars=report.scalars(), items=report.items())

    def _result(self, planned: _Planned, log_likelihoods: np.ndarray) -> TaskResult:
        values = iter(log_likelihoods[planned.requests])
        items = planned.task.items
        given = [_take(values, item) for item in items]
        without = [_take(values, item) if item.has_unconditional else None for item in items]
        scored = [Scored(*parts) for parts in zip(items, given, without, strict=True)]
        num_truncated = int(self._packed.truncated[planned.requests].sum())
        counts = {NUM_TRUNCATED: num_truncated, NUM_LEFT_OUT: planned.num_left_out}
        return TaskResult(planned.task, task_metrics(planned.task, scored) | counts, scored)


def _left_out(task: str, number: int) -> str:
    return f"{task}: items left out because a continuation is longer than the context: {number:,}"


def _means(results: Sequence[TaskResult]) -> dict[str, float]:
    """Returns means of the tasks' own accuracies, of guessing, and of bits per byte."""
    choosing = [result.metrics for result in results if result.task.is_multiple_choice]
    names = ("primary", RANDOM) if choosing else ()
    means = {name: float(np.mean([metrics[name] for metrics in choosing])) for name in names}
    return means | {"bpb": float(np.mean([result.metrics["bpb"] for result in results]))}


def _take(values: Iterator[float], item: Item) -> np.ndarray:
    return np.array([next(values) for _ in item.choices])
