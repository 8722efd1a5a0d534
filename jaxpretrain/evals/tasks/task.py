r"""Tasks, wherever they come from: questions with scored continuations.

A user's own task is a JSON Lines file, a question a line:

    {"context": "Question: 2 + 2?\nAnswer:", "continuations": [" 4", " 5"], "answer": 0}

`context` and `continuations` are scored as they are; continuations usually begin with a space.
`answer` is the index of the right one. Optional: `id`, and `unconditional_context`, the text before
the continuations where the question is left out (for pmi_dc). With one continuation, only its
likelihood is reported.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from jaxpretrain.config.errors import InputError, nearest

Metric = Literal["acc", "len_norm", "pmi_dc", "f1", "ce_loss", "bpb"]

_FIELDS = ("context", "continuations", "answer", "id", "unconditional_context")


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


def load_own(path: Path, name: str) -> Task:
    """Loads a user's own task; InputError: the file is missing or empty, or a line malformed."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read this task file ({error})") from None
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line), number))
        except json.JSONDecodeError as error:
            what = f"{error.msg} at character {error.pos + 1}"
            raise InputError(f"{path}, line {number}: not JSON: {what}") from None
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    if not items:
        raise InputError(f"{path}: has no questions")
    return Task(name, "acc", tuple(items))


def _item(row: object, number: int) -> Item:
    """Returns the item of a line; the ValueError that it raises says what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    for field in row:
        if field not in _FIELDS:
            raise ValueError(f"unknown field '{field}'.{nearest(field, _FIELDS)}")
    context, continuations = row.get("context"), row.get("continuations")
    if not isinstance(context, str) or not context:
        raise ValueError("'context' must be a text that is not empty")
    if not isinstance(continuations, list) or not continuations:
        raise ValueError("'continuations' must be a list of texts")
    if not all(isinstance(text, str) and text for text in continuations):
        raise ValueError("'continuations' must be texts that are not empty")
    answer = row.get("answer")
    if type(answer) is not int or not 0 <= answer < len(continuations):
        raise ValueError(f"'answer' must be a number from 0 to {len(continuations) - 1}")
    unconditional = row.get("unconditional_context")
    if unconditional is not None and (not isinstance(unconditional, str) or not unconditional):
        raise ValueError("'unconditional_context' must be a text that is not empty")
    choices = tuple(Choice(context, text, unconditional) for text in continuations)
    return Item(str(row.get("id", number)), choices, answer)
