"""The global data order: sample k of a run is a pure function of (seed, k).

It knows nothing of hosts, workers or restarts: those only decide who reads a sample. So the
whole state of the data is one integer. Every order visits an example at most once in an epoch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.order.permutations import Chunked, Hashed, Listed, Permutations, Shuffled

OrderName = Literal["olmo", "olmo_core", "hashed"]

_FIRST_EPOCH = {"olmo": 0, "olmo_core": 1}
"""What each program adds to the seed in its first epoch."""


@dataclass(frozen=True)
class Order:
    """Sample numbers of the run to example indices."""

    permutations: Permutations
    epoch_size: int
    """Samples of an epoch: the first positions of its permutation. The rest is left out."""

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The examples, int64 [n], that the samples, int64 [n], are."""
        return self.permutations(*np.divmod(samples, self.epoch_size))

    def find(self, example: int, num_samples: int) -> Iterator[int]:
        """The samples among the first `num_samples` that are this example, epoch by epoch."""
        for epoch in range(-(-num_samples // self.epoch_size)):
            position = self.permutations.find(epoch, example)
            if position is not None and position < self.epoch_size:
                sample = epoch * self.epoch_size + position
                if sample < num_samples:
                    yield sample


@dataclass(frozen=True)
class Ordering:
    """Which order: its name and what is changed in it.

    `olmo` is OLMo's (olmo/data/iterable_dataset.py): epoch e, from 0, is `arange(n, uint32)`
    shuffled by NumPy's PCG64(seed + e). `olmo_core` is OLMo-core's (olmo_core/data/data_loader.py):
    the same with epochs from 1. `hashed` needs no memory. In each, an epoch is the first
    floor(n / epoch_multiple) * epoch_multiple positions of its permutation.
    """

    name: OrderName
    chunk: int = 1
    """Consecutive examples that stay together: chunks of this many are permuted."""
    epoch_multiple: int = 1
    global_indices: str | None = None
    """File that replaces epoch 0, one index an example."""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise InputError(f"data.order_chunk is {self.chunk}: must be positive")
        if self.epoch_multiple < 1:
            raise InputError(f"data.epoch_multiple is {self.epoch_multiple}: must be positive")

    def make(self, num_examples: int, seed: int) -> Order:
        """The order of `num_examples`, a multiple of the chunk."""
        if num_examples < 1:
            raise InputError("there are no training examples: the data holds not one full sequence")
        epoch_size = num_examples - num_examples % self.epoch_multiple
        if not epoch_size:
            raise InputError(
                f"data.epoch_multiple is {self.epoch_multiple}, and there are {num_examples}"
                " examples: not one epoch"
            )
        num_chunks = num_examples // self.chunk
        permutations: Permutations = (
            Hashed(num_chunks, seed)
            if self.name == "hashed"
            else Shuffled(num_chunks, seed + _FIRST_EPOCH[self.name])
        )
        if self.chunk > 1:
            permutations = Chunked(permutations, self.chunk)
        if self.global_indices is not None:
            permutations = _listed(
                Path(self.global_indices), num_examples, epoch_size, permutations
            )
        return Order(permutations, epoch_size)

    def identity(self) -> list[object]:
        """What tells it from other orders of the same examples and seed."""
        listed = None
        if self.global_indices is not None:
            with Path(self.global_indices).open("rb") as file:
                listed = hashlib.sha256(file.read(2**20)).hexdigest()
        return [self.name, self.chunk, self.epoch_multiple, listed]


def _listed(path: Path, num_examples: int, epoch_size: int, later: Permutations) -> Listed:
    listed = Listed(path, num_examples, later)
    if not epoch_size <= len(listed) <= num_examples:
        raise InputError(
            f"data.global_indices {path}: holds {len(listed):,} indices; an epoch of this data has"
            f" {epoch_size:,} samples of {num_examples:,} examples. Check the list of files,"
            " data.seq_len and data.epoch_multiple"
        )
    return listed
