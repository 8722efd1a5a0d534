"""Token ids of items: context and continuation are encoded by themselves and joined, as in OLMo."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.special import begin_ids
from jaxpretrain.data.token_files.tokenizer import encoder, read_tokenizer, vocabulary_size
from jaxpretrain.evals.tasks.task import Task


@dataclass(frozen=True)
class Request:
    """A request for log p(continuation | context); both have at least one token."""

    context: Sequence[int]
    continuation: Sequence[int]


class TextEncoder:
    """A tokenizer that fits a model; InputError where it has ids beyond the vocabulary."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        tokenizer_json = read_tokenizer(path)
        size = vocabulary_size(tokenizer_json)
        if size > vocab_size:
            raise InputError(
                f"the tokenizer {path} does not fit the model: it has {size} ids, the model's "
                f"vocabulary {vocab_size}"
            )
        self._encoder = encoder(tokenizer_json, path)
        self.begin_ids = begin_ids(tokenizer_json, path)
        """The tokens that every text begins with, as the documents of the training data did."""

    def __call__(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Returns the ids of each text, without any that the tokenizer would put around it."""
        unique = list(dict.fromkeys(texts))
        encodings = self._encoder.encode_batch(unique, add_special_tokens=False)
        return {text: e.ids for text, e in zip(unique, encodings, strict=True)}


def encode_task(
    task: Task, encode: TextEncoder, context_length: int
) -> tuple[Task, list[Request], list[Request]]:
    """Returns the task without items that cannot be scored, the requests of all their choices in
    order, and those after the unconditional contexts.

    OLMo shortens contexts, from the left, and no continuation: an item with one that is longer than
    the context is left out. InputError: a text has no tokens, or no item is left.
    """
    texts = (
        text
        for item in task.items
        for c in item.choices
        for text in (c.context, c.continuation, c.unconditional or "")
    )
    ids = encode(texts)
    sizes = [max(len(ids[choice.continuation]) for choice in item.choices) for item in task.items]
    items = tuple(
        item for item, size in zip(task.items, sizes, strict=True) if size <= context_length
    )
    if task.items and not items:
        raise InputError(
            f"task {task.name}: every item has a continuation of more tokens than the context of "
            f"{context_length}; the shortest has {min(sizes)}"
        )
    choices = [(item, choice) for item in items for choice in item.choices]
    for item, choice in choices:
        for what in ("context", "continuation"):
            text = getattr(choice, what)
            if not ids[text]:
                where = f"task {task.name}, item {item.name}"
                raise InputError(f"{where}: the {what} {text!r} has no tokens")
    begin = encode.begin_ids
    conditional = [Request([*begin, *ids[c.context]], ids[c.continuation]) for _, c in choices]
    unconditional = [
        Request([*begin, *ids[c.unconditional or ""]], ids[c.continuation])
        for item, c in choices
        if item.has_unconditional
    ]
    return replace(task, items=items), conditional, unconditional
