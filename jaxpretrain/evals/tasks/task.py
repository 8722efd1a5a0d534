"""Tasks, wherever they come from: questions with scored continuations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Metric = Literal["acc", "len_norm", "pmi_dc", "f1", "ce_loss", "bpb"]


@dataclass(frozen=True)
class Choice:
    """A continuation that is scored after a context."""

    context: str
    continuation: str
    """The text with its leading space."""
    unconditional: str | None = None
    """A context without the question; None where there is none."""


@dataclass(frozen=True)
class Item:
    """A question."""

    name: str
    choices: tuple[Choice, ...]
    answer: int = 0
    """Index of the right choice."""

    @property
    def has_unconditional(self) -> bool:
        """True where all choices can be scored without the question too."""
        return all(choice.unconditional for choice in self.choices)


@dataclass(frozen=True)
class Task:
    """Questions with the metric that their authors report."""

    name: str
    metric: Metric
    items: tuple[Item, ...]

    @property
    def is_multiple_choice(self) -> bool:
        """True where an item has several choices; else only the right answer is scored."""
        return any(len(item.choices) > 1 for item in self.items)


def take(task: Task, size: int | None, seed: int | None) -> Task:
    """Returns a task with at most `size` items: the first ones, or drawn by a seed, in order."""
    if size is None or size >= len(task.items):
        return task
    chosen: Sequence[int] = range(size)
    if seed is not None:
        drawn = np.random.default_rng(seed).choice(len(task.items), size, replace=False)
        chosen = sorted(drawn.tolist())
    return replace(task, items=tuple(task.items[i] for i in chosen))
