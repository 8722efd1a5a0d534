"""The global data order: sample k of a run is a pure function of (seed, k).

It knows nothing of hosts, workers or restarts: those only decide who reads a sample. So the
whole state of the data is one integer. Every order visits an example at most once in an epoch.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PlaceText
from jaxpretrain.config.ranges import Positive
from jaxpretrain.data.order.permutations import Hashed, Listed, Permutations, Shuffled
from jaxpretrain.storage.copies import local_copy
from jaxpretrain.storage.paths import parse


@dataclass(frozen=True)
class Order:
    """A function from the sample numbers of a run to example indices."""

    permutations: Permutations
    """The order of the chunks of each epoch."""
    epoch_size: int
    """Number of samples of an epoch, the first of its permutation. The rest is left out."""
    chunk: int = 1
    """Number of consecutive examples that stay together."""

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Returns the examples, int64 [n], of the samples, int64 [n]."""
        epochs, positions = np.divmod(samples, self.epoch_size)
        chunks, offsets = np.divmod(positions, self.chunk)
        return self.permutations(epochs, chunks) * self.chunk + offsets

    def find(self, example: int, num_samples: int) -> Iterator[int]:
        """Yields the samples among the first `num_samples` that are this example, by epoch."""
        chunk, offset = divmod(example, self.chunk)
        for epoch in range(-(-num_samples // self.epoch_size)):
            found = self.permutations.find(epoch, chunk)
            position = self.epoch_size if found is None else found * self.chunk + offset
            sample = epoch * self.epoch_size + position
            if position < self.epoch_size and sample < num_samples:
                yield sample


@dataclass(frozen=True)
class Ordering(ABC):
    """The choice of an order, before the number of examples and the seed are known."""

    epoch_multiple: Annotated[int, Positive] = 1
    """Each epoch is cut to a multiple of this number of examples. OLMo and OLMo-core begin an epoch
    with a batch: the same with the batch size here."""

    name: ClassVar[str]

    def chunk_size(self) -> int:
        """Returns the number of consecutive examples that stay together."""
        return 1

    def make(self, num_examples: int, seed: int) -> Order:
        """Returns the order of so many examples; those after the last whole chunk are left out."""
        if num_examples < 1:
            raise InputError("there are no training examples: the data holds not one full sequence")
        chunk = self.chunk_size()
        num_chunks = num_examples // chunk
        num_examples = num_chunks * chunk
        epoch_size = num_examples - num_examples % self.epoch_multiple
        if not epoch_size:
            raise InputError(
                f"data.order.epoch_multiple is {self.epoch_multiple}, and there are {num_examples}"
                " examples: not one epoch"
            )
        return Order(self._permutations(num_chunks, seed), epoch_size, chunk)

    def identity(self) -> list[object]:
        """Returns a list, JSON-like, that differs from that of every other order."""
        return [self.name, self.chunk_size(), self.epoch_multiple, None]

    def describe(self) -> str:
        """Returns the name of the order and its options, for a line of text."""
        return f"{self.name} order"

    @abstractmethod
    def _permutations(self, num_chunks: int, seed: int) -> Permutations: ...


@dataclass(frozen=True)
class OlmoOrder(Ordering):
    """OLMo's order (olmo/data/iterable_dataset.py): PCG64(seed + e) shuffles epoch e, from 0."""

    global_indices: PlaceText | None = None
    """OLMo's `global_indices.npy`, one uint32 an example: replaces the first epoch."""

    name = "olmo"

    def make(self, num_examples: int, seed: int) -> Order:
        """Returns the order, in which a file may replace the first epoch."""
        order = super().make(num_examples, seed)
        if self.global_indices is None:
            return order
        listed = Listed(self._file(), num_examples, order.permutations)
        if not order.epoch_size <= len(listed) <= num_examples:
            raise InputError(
                f"data.order.global_indices {self.global_indices}: holds {len(listed):,} indices;"
                f" an epoch of this data has {order.epoch_size:,} samples of {num_examples:,}"
                " examples. Check the list of files, data.seq_len and data.order.epoch_multiple"
            )
        return Order(listed, order.epoch_size)

    def identity(self) -> list[object]:
        """Returns the list, with a hash of the first MiB of the file."""
        if self.global_indices is None:
            return super().identity()
        with self._file().open("rb") as file:
            return [*super().identity()[:-1], hashlib.sha256(file.read(2**20)).hexdigest()]

    def describe(self) -> str:
        """Returns the name, and the file that replaces the first epoch."""
        listed = self.global_indices
        return super().describe() + (f", the first as {listed} lists them" if listed else "")

    def _file(self) -> Path:
        """Returns the file of indices, or the copy of one in a bucket."""
        return local_copy(parse(self.global_indices or "", "data.order.global_indices"))

    def _permutations(self, num_chunks: int, seed: int) -> Permutations:
        return Shuffled(num_chunks, seed)


@dataclass(frozen=True)
class OlmoCoreOrder(Ordering):
    """OLMo-core's order (olmo_core/data/data_loader.py): OLMo's shuffles, with epochs from 1."""

    chunk: Annotated[int, Positive] = 1
    """Consecutive examples of a file that stay together; each file is cut to a whole number of
    them (OLMo-core: the longest sequence length of the run / seq_len)."""

    name = "olmo_core"

    def chunk_size(self) -> int:
        """Returns the number of consecutive examples that stay together."""
        return self.chunk

    def describe(self) -> str:
        """Returns the name, and the size of the chunks."""
        return super().describe() + (f" of {self.chunk} at a time" if self.chunk > 1 else "")

    def _permutations(self, num_chunks: int, seed: int) -> Permutations:
        return Shuffled(num_chunks, seed + 1)


@dataclass(frozen=True)
class HashedOrder(Ordering):
    """An order that needs no memory, for a billion examples or more."""

    name = "hashed"

    def _permutations(self, num_chunks: int, seed: int) -> Permutations:
        return Hashed(num_chunks, seed)


OrderChoice = OlmoOrder | OlmoCoreOrder | HashedOrder
"""The orders to choose from: what OLMo and OLMo-core do, bit for bit, or one without memory."""
