"""What a task is, wherever it comes from: questions with scored continuations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Metric = Literal["acc", "len_norm", "pmi_dc", "f1", "ce_loss", "bpb"]


@dataclass(frozen=True)
class Choice:
    """A continuation whose likelihood after a context is asked for."""

    context: str
    continuation: str
    """As it is, with its leading space."""
    unconditional: str | None = None
    """A context that says nothing of the question; None: there is none."""


@dataclass(frozen=True)
class Item:
    """A question."""

    name: str
    choices: tuple[Choice, ...]
    answer: int = 0
    """Index of the right choice."""

    @property
    def has_unconditional(self) -> bool:
        """Whether all choices can be scored without the question too."""
        return all(choice.unconditional for choice in self.choices)


@dataclass(frozen=True)
class Task:
    """Questions with the metric that their authors report."""

    name: str
    metric: Metric
    items: tuple[Item, ...]

    @property
    def is_multiple_choice(self) -> bool:
        """Whether there is anything to choose; else only the right answer is scored."""
        return any(len(item.choices) > 1 for item in self.items)


def take(task: Task, size: int | None, seed: int | None) -> Task:
    """A task with at most `size` items: the first, or with a seed drawn, in their old order."""
    if size is None or size >= len(task.items):
        return task
    chosen: Sequence[int] = range(size)
    if seed is not None:
        drawn = np.random.default_rng(seed).choice(len(task.items), size, replace=False)
        chosen = sorted(drawn.tolist())
    return replace(task, items=tuple(task.items[i] for i in chosen))
