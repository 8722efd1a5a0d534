"""The contents of a batch of text: the files its sequences come from, their documents and words."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxpretrain.data.contract import TrainingData


@dataclass(frozen=True)
class Row:
    """One sequence of a batch."""

    sample: int
    """Number of the sample in the run, from 0."""
    source: str | None
    """Name of its source in a mixture."""
    epoch: int
    """Number of its epoch in the data, or in the source, from 0."""
    example: int
    """Index of the sequence in the data, or in the source."""
    file: str
    """Path relative to the root of the data, or of the source."""
    tokens: tuple[int, int]
    """First token in the file, and the one after the last."""
    documents: list[tuple[int, int]] | None = None
    """Part of each document within the row, as `tokens`; None where the EOS is not known."""
    num_masked: int = 0
    """Number of tokens that are left out of the loss."""
    text: str | None = None
    """Text of the first tokens; None without a tokenizer."""


class TrainingSequences(TrainingData):
    """Opened training data of which each sequence can be found in its file."""

    @abstractmethod
    def locate(self, samples: np.ndarray) -> list[Row]:
        """Returns the places that the samples, int64 [n], come from."""

    @abstractmethod
    def find(self, example: int, num_samples: int, source: str | None = None) -> Iterator[int]:
        """Yields the samples among the first `num_samples` that are this example of a source."""


def read_rows(
    data: TrainingSequences,
    samples: np.ndarray,
    *,
    num_tokens: int,
    eos_id: int | None,
    decode: Callable[[list[int]], str] | None,
) -> list[Row]:
    """Returns the samples, int64 [n]; `decode` makes text of the first `num_tokens` tokens."""
    batch = data.batch(samples)
    masked = (~batch["mask"]).sum(axis=1) if "mask" in batch else np.zeros(len(samples), int)
    return [
        replace(
            row,
            documents=None if eos_id is None else documents(tokens, eos_id),
            num_masked=num_masked,
            text=decode(tokens[:num_tokens].tolist()) if decode else None,
        )
        for row, tokens, num_masked in zip(
            data.locate(samples), batch["tokens"], masked.tolist(), strict=True
        )
    ]


def documents(tokens: np.ndarray, eos_id: int) -> list[tuple[int, int]]:
    """Returns (first, after the last) of each document's part of a sequence [t].

    An EOS belongs to the document that it ends.
    """
    ends = [*(np.flatnonzero(tokens == eos_id) + 1).tolist(), len(tokens)]
    starts = [0, *ends]
    return [(start, end) for start, end in zip(starts, ends, strict=False) if start < end]
