"""Token ids of items: context and continuation are encoded by themselves and joined, as in OLMo."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.tokenizer import encoder, read_tokenizer, vocabulary_size
from jaxpretrain.evals.tasks.task import Task


@dataclass(frozen=True)
class Request:
    """A request for log p(continuation | context); both have at least one token."""

    context: Sequence[int]
    continuation: Sequence[int]


class TextEncoder:
    """A tokenizer that fits a model.

    Args:
      path: a `tokenizer.json`.
      vocab_size: number of ids of the model; all ids of the tokenizer must lie below.

    Raises:
      InputError: the tokenizer does not fit.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        tokenizer_json = read_tokenizer(path)
        size = vocabulary_size(tokenizer_json)
        if size > vocab_size:
            raise InputError(
                f"the tokenizer {path} does not fit the model: it has {size} ids, the model's "
                f"vocabulary {vocab_size}"
            )
        self._encoder = encoder(tokenizer_json, path)

    def __call__(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Returns the ids of each text, without any that the tokenizer would put around it."""
        unique = list(dict.fromkeys(texts))
        encodings = self._encoder.encode_batch(unique, add_special_tokens=False)
        return {text: e.ids for text, e in zip(unique, encodings, strict=True)}


def leave_out_long(task: Task, encode: TextEncoder, context_length: int) -> Task:
    """Returns the task without the items that have a continuation longer than the context.

    They cannot be scored: OLMo shortens contexts, from the left, and no continuation.

    Raises:
      InputError: no item is left.
    """
    ids = encode(choice.continuation for item in task.items for choice in item.choices)
    sizes = [max(len(ids[choice.continuation]) for choice in item.choices) for item in task.items]
    items = tuple(
        item for item, size in zip(task.items, sizes, strict=True) if size <= context_length
    )
    if task.items and not items:
        raise InputError(
            f"task {task.name}: every item has a continuation of more tokens than the context of "
            f"{context_length}; the shortest has {min(sizes)}"
        )
    return replace(task, items=items)


def encode_task(
    task: Task, encode: TextEncoder, context_length: int
) -> tuple[list[Request], list[Request]]:
    """Returns requests of all choices in order, and those after the unconditional contexts.

    Raises:
      InputError: a text has no tokens, or a continuation alone is longer than the context.
    """
    choices = [(item, choice) for item in task.items for choice in item.choices]
    ids = encode(
        text for _, c in choices for text in (c.context, c.continuation, c.unconditional or "")
    )
    for item, choice in choices:
        where = f"task {task.name}, item {item.name}"
        for what in ("context", "continuation"):
            text = getattr(choice, what)
            if not ids[text]:
                raise InputError(f"{where}: the {what} {text!r} has no tokens")
        if (size := len(ids[choice.continuation])) > context_length:
            raise InputError(
                f"{where}: a continuation has {size} tokens, more than the context of "
                f"{context_length}"
            )
    conditional = [Request(ids[c.context], ids[c.continuation]) for _, c in choices]
    unconditional = [
        Request(ids[c.unconditional or ""], ids[c.continuation])
        for item, c in choices
        if item.has_unconditional
    ]
    return conditional, unconditional
