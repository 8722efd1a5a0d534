"""Multiple-choice and likelihood tasks, in the loop and from the command line.

All tasks are tokenised, planned and compiled before the first parameters come, so that what cannot
be evaluated is refused at the start and an evaluation is nothing but forward passes.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpretrain.evals.contract import Results
from jaxpretrain.evals.scoring.encode import TextEncoder, encode_task, leave_out_long
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.evals.tasks.catalogue import Selection
from jaxpretrain.evals.tasks.metrics import (
    NUM_LEFT_OUT,
    NUM_TRUNCATED,
    RANDOM,
    Scored,
    task_metrics,
)
from jaxpretrain.evals.tasks.task import Task

_LOGGED = ("acc", "len_norm", "pmi_dc", "f1", "ce_loss", "bpb", "soft", "soft_log", RANDOM)
"""What the loop logs of a task, beside the standard error of its own metric."""


@dataclass(frozen=True)
class TaskResult:
    """What a task came to."""

    task: Task
    metrics: dict[str, float]
    scored: list[Scored]


@dataclass(frozen=True)
class Speed:
    """Of one evaluation, without compilation."""

    num_requests: int
    num_tokens: int
    """That were run, without padding."""
    seconds: float

    @property
    def requests_per_second(self) -> float:
        """Continuations scored in a second."""
        return self.num_requests / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens run in a second."""
        return self.num_tokens / self.seconds


@dataclass(frozen=True)
class Report:
    """The results of all tasks with one set of parameters."""

    tasks: list[TaskResult]
    groups: dict[str, dict[str, float]]
    """Group -> means over its tasks."""
    speed: Speed


@dataclass(frozen=True)
class _Prepared:
    """A task with its places in the list of all requests."""

    task: Task
    conditional: slice
    unconditional: slice
    num_left_out: int
    num_truncated: int


class Downstream:
    """An evaluator of tasks.

    Args:
      scorer: of the model that is evaluated.
      encode: its tokenizer.
      selection: the tasks, and the groups whose means are wanted.

    Raises:
      InputError: a text has no tokens, or no item of a task fits the context.
    """

    def __init__(self, scorer: Scorer, encode: TextEncoder, selection: Selection) -> None:
        self._scorer = scorer
        self._groups = selection.groups
        requests, places = [], []
        for task in selection.tasks:
            fitting = leave_out_long(task, encode, scorer.context_length)
            num_left_out = len(task.items) - len(fitting.items)
            conditional, unconditional = encode_task(fitting, encode, scorer.context_length)
            start, middle = len(requests), len(requests) + len(conditional)
            requests += conditional + unconditional
            slices = slice(start, middle), slice(middle, len(requests))
            places.append((fitting, *slices, num_left_out))
        self._packed = scorer.prepare(requests)
        self._tasks = [
            _Prepared(*place, num_truncated=sum(map(self._count_truncated, place[1:3])))
            for place in places
        ]

    def notes(self) -> list[str]:
        """Lines about items that are left out, of the tasks that have such."""
        return [
            left_out(prepared.task.name, prepared.num_left_out)
            for prepared in self._tasks
            if prepared.num_left_out
        ]

    def report(self, params: Any) -> Report:
        """Scores everything; the parameters are neither copied nor changed."""
        start = time.perf_counter()
        log_likelihoods = self._scorer(params, self._packed).log_likelihoods
        seconds = time.perf_counter() - start
        tasks = [self._result(prepared, log_likelihoods) for prepared in self._tasks]
        speed = Speed(self._packed.num_requests, self._packed.num_tokens, seconds)
        return Report(tasks, dict(group_means(tasks, self._groups)), speed)

    def __call__(self, params: Any) -> Results:
        """`eval/<task>/<metric>`, `eval/<group>/<mean>` and the speed."""
        report = self.report(params)
        scalars: dict[str, float | None] = {}
        for result in report.tasks:
            logged = (*_LOGGED, f"{result.task.metric}_stderr")
            named = {name: result.metrics[name] for name in logged if name in result.metrics}
            if left_out := result.metrics[NUM_LEFT_OUT]:
                named[NUM_LEFT_OUT] = left_out
            scalars |= {f"eval/{result.task.name}/{name}": x for name, x in named.items()}
        for group, means in report.groups.items():
            scalars |= {f"eval/{group}/{name}": mean for name, mean in means.items()}
        scalars["perf/eval_requests_per_second"] = report.speed.requests_per_second
        scalars["perf/eval_tokens_per_second"] = report.speed.tokens_per_second
        return Results(scalars=scalars)

    def _count_truncated(self, requests: slice) -> int:
        return int(self._packed.truncated[requests].sum())

    def _result(self, prepared: _Prepared, log_likelihoods: np.ndarray) -> TaskResult:
        conditional = iter(log_likelihoods[prepared.conditional])
        unconditional = iter(log_likelihoods[prepared.unconditional])
        scored = []
        for item in prepared.task.items:
            num_choices = len(item.choices)
            given = _take(conditional, num_choices)
            without = _take(unconditional, num_choices) if item.has_unconditional else None
            scored.append(Scored(item, given, without))
        metrics = task_metrics(prepared.task, scored)
        counts = {NUM_TRUNCATED: prepared.num_truncated, NUM_LEFT_OUT: prepared.num_left_out}
        return TaskResult(prepared.task, metrics | counts, scored)


def left_out(task: str, num_items: int) -> str:
    """The line about items of a task that are too long."""
    return (
        f"{task}: items left out because a continuation is longer than the context: {num_items:,}"
    )


def group_means(
    results: Sequence[TaskResult], groups: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str, dict[str, float]]]:
    """For each group the mean of its tasks' own accuracies, of guessing, and of bits per byte."""
    by_name = {result.task.name: result for result in results}
    for group, names in groups.items():
        members = [by_name[name] for name in names]
        choosing = [r.metrics for r in members if r.task.is_multiple_choice]
        means = {"bpb": _mean(r.metrics["bpb"] for r in members)}
        if choosing:
            means = {name: _mean(m[name] for m in choosing) for name in ("primary", RANDOM)} | means
        yield group, means


def _take(values: Iterator[float], count: int) -> np.ndarray:
    return np.array([next(values) for _ in range(count)])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
