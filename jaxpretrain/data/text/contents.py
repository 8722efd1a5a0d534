"""What a batch of text holds: the files its sequences come from, their documents and words."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxpretrain.data.text.mixture import TrainingMixture
from jaxpretrain.data.text.text import TrainingText


@dataclass(frozen=True)
class Row:
    """One sequence of a batch."""

    sample: int
    """Number in the run, from 0."""
    source: str | None
    epoch: int
    """Of the source, where there are several; from 0."""
    example: int
    """Index among the sequences of the data, or of the source."""
    file: str
    """Relative to the root of the data, or of the source."""
    tokens: tuple[int, int]
    """First token in the file, and the one after the last."""
    documents: list[tuple[int, int]] | None
    """The part of each document within the row, as `tokens`; None where the EOS is not known."""
    num_masked: int
    """Tokens that are left out of the loss."""
    text: str | None
    """Of the first tokens; None without a tokenizer."""


def read_rows(
    data: TrainingText | TrainingMixture,
    samples: np.ndarray,
    *,
    num_tokens: int,
    eos_id: int | None,
    decode: Callable[[list[int]], str] | None,
) -> list[Row]:
    """What the samples, int64 [n], are; `decode` makes text of the first `num_tokens` tokens."""
    batch = data.batch(samples)
    masked = (~batch["mask"]).sum(axis=1) if "mask" in batch else np.zeros(len(samples), int)
    rows = []
    for place, tokens, num_masked in zip(
        data.locate(samples), batch["tokens"], masked.tolist(), strict=True
    ):
        row = Row(
            sample=place.sample,
            source=place.source,
            epoch=place.epoch,
            example=place.example,
            file=str(place.file),
            tokens=(place.start, place.start + len(tokens)),
            documents=None if eos_id is None else documents(tokens, eos_id),
            num_masked=num_masked,
            text=decode(tokens[:num_tokens].tolist()) if decode else None,
        )
        rows.append(row)
    return rows


def documents(tokens: np.ndarray, eos_id: int) -> list[tuple[int, int]]:
    """(first, after the last) of each document's part of a sequence [t]; an EOS ends its own."""
    ends = [*(np.flatnonzero(tokens == eos_id) + 1).tolist(), len(tokens)]
    starts = [0, *ends]
    return [(start, end) for start, end in zip(starts, ends, strict=False) if start < end]
