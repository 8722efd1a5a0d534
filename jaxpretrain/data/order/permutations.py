"""The permutations of examples, one for every epoch, behind the data order.

OLMo's is NumPy's shuffle of all indices, 4 bytes an example, so a large one is a file that is
mapped into memory. The hashed one is computed for each position and keeps nothing.
"""

import math
import os
import threading
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.files import TEMPORARY, atomic_file, cache_dir, only_one_process

MAPPED_FROM = 10**7
"""The number of items from which on a shuffle is kept in a file rather than in memory."""

_BLOCK = 2**20


class Permutations(Protocol):
    """A permutation of 0, ..., num_items - 1 for every epoch, counted from 0."""

    def __call__(self, epochs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the items, int64 [n], at the positions, int64 [n], of the epochs, int64 [n]."""
        ...

    def find(self, epoch: int, item: int) -> int | None:
        """Returns the position of an item in an epoch; None where the epoch lacks it."""


class Shuffled(Permutations):
    """`arange(num_items, uint32)` shuffled by NumPy's PCG64(seed + epoch), as OLMo does.

    Building one takes 7 s for 1e8 items. At most two are held: a batch may straddle two epochs.
    """

    def __init__(self, num_items: int, seed: int):
        if num_items > 2**32:
            raise InputError(
                f"OLMo's orders number examples with 32 bits, and there are {num_items:,}; set"
                " data.order=hashed_order"
            )
        self.num_items = num_items
        self.seed = seed
        self._held = lru_cache(maxsize=2)(partial(shuffled, num_items))
        self._lock = threading.Lock()

    def __call__(self, epochs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the items; an epoch that is new is shuffled first."""
        items = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            items[here] = self._of(epoch)[positions[here]]
        return items

    def find(self, epoch: int, item: int) -> int | None:
        """Returns the position, after a search of the whole epoch."""
        return _search(self._of(epoch), item)

    def _of(self, epoch: int) -> np.ndarray:
        with self._lock:
            return self._held(self.seed + epoch)

    def __reduce__(self) -> tuple[object, ...]:
        return Shuffled, (self.num_items, self.seed)


class Hashed(Permutations):
    """Permutations in constant memory, for indexes too large to keep one of.

    Writes an item as (left, right) on a grid of about sqrt(n) by sqrt(n) cells and applies a
    keyed Feistel network with additions modulo the sides (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002). The grid has at most sqrt(n) + 1 cells more than there are
    items; one that lands there walks on until it is back inside.
    """

    ROUNDS = 8

    def __init__(self, num_items: int, seed: int):
        self.num_items = num_items
        self.seed = seed
        self._height = np.uint64(math.isqrt(num_items - 1) + 1)
        self._width = np.uint64(-(-num_items // int(self._height)))

    def __call__(self, epochs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the items, in the same time for every position."""
        keys = self._keys(epochs)
        items = self._forward(positions.astype(np.uint64), keys)
        while (outside := items >= self.num_items).any():
            items[outside] = self._forward(items[outside], keys[outside])
        return items.astype(np.int64)

    def find(self, epoch: int, item: int) -> int | None:
        """Returns the position, by the network run backwards."""
        keys = self._keys(np.array([epoch]))
        position = self._backward(np.array([item], np.uint64), keys)
        while position[0] >= self.num_items:
            position = self._backward(position, keys)
        return int(position[0])

    def _keys(self, epochs: np.ndarray) -> np.ndarray:
        return _mix(epochs.astype(np.uint64) + _mix(np.uint64(self.seed % 2**64)))

    def _forward(self, cells: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Maps the grid's cells, uint64 [n], one to one onto each other, as the keys choose."""
        left, right = np.divmod(cells, self._width)
        for number in range(0, self.ROUNDS, 2):
            left = (left + _round(right, keys, number) % self._height) % self._height
            right = (right + _round(left, keys, number + 1) % self._width) % self._width
        return left * self._width + right

    def _backward(self, cells: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = np.divmod(cells, self._width)
        for number in reversed(range(0, self.ROUNDS, 2)):
            added = _round(left, keys, number + 1) % self._width
            right = (right + self._width - added) % self._width
            added = _round(right, keys, number) % self._height
            left = (left + self._height - added) % self._height
        return left * self._width + right


class Listed(Permutations):
    """A file of indices as epoch 0, such as OLMo's `global_indices.npy`: uint32, no header.

    Later epochs are those of `later`. An index is read, and checked, when it is asked for.
    """

    def __init__(self, path: Path, num_items: int, later: Permutations):
        self.num_items = num_items
        self.later = later
        self._path = path
        try:
            self._indices = np.memmap(path, "<u4", mode="r")
        except (OSError, ValueError) as error:
            problem = f"data.order.global_indices {path}: cannot be read ({error})"
            raise InputError(problem) from None

    def __len__(self) -> int:
        return len(self._indices)

    def __call__(self, epochs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the items. Raises InputError for an index of an example that is not there."""
        items = np.empty(len(positions), np.int64)
        first = epochs == 0
        items[first] = self._indices[positions[first]]
        if (beyond := items[first] >= self.num_items).any():
            which = int(np.argmax(beyond))
            raise InputError(
                f"data.order.global_indices {self._path}: position {positions[first][which]} names"
                f" example {items[first][which]} of {self.num_items}; it is of other data"
            )
        items[~first] = self.later(epochs[~first], positions[~first])
        return items

    def find(self, epoch: int, item: int) -> int | None:
        """Returns the position, after a search of the file for epoch 0."""
        return _search(self._indices, item) if epoch == 0 else self.later.find(epoch, item)


def shuffled(num_items: int, seed: int) -> np.ndarray:
    """Returns `arange(num_items)` shuffled by PCG64(seed), uint32 [num_items].

    A large one is built once, in the cache directory, where every process of a host maps it. While
    it is built all of it should fit in memory: the kernel would page it, but at random.
    """
    if num_items < MAPPED_FROM:
        return _shuffle(np.empty(num_items, np.uint32), seed)
    path = cache_dir() / "orders" / f"pcg64-{seed}-{num_items}.uint32"
    try:
        with only_one_process(path.with_suffix(".lock")):
            if not path.exists() or path.stat().st_size != 4 * num_items:
                _build(path, num_items, seed)
        return np.asarray(np.memmap(path, np.uint32, mode="r", shape=(num_items,)))
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; the order of {num_items:,} examples takes"
            f" {4e-9 * num_items:.1f} GB there: set JAXPRETRAIN_CACHE, or data.order=hashed_order"
        ) from None


def _build(path: Path, num_items: int, seed: int) -> None:
    for left_over in path.parent.glob(f"{path.name}{TEMPORARY}*"):
        left_over.unlink()  # of a process that died: nobody else writes while the lock is held
    with atomic_file(path) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * num_items)  # a full disk is an error here
        # As a plain array: NumPy shuffles others item by item in Python.
        _shuffle(np.asarray(np.memmap(file, np.uint32, "r+", shape=(num_items,))), seed)


def _shuffle(items: np.ndarray, seed: int) -> np.ndarray:
    for start in range(0, len(items), _BLOCK):
        items[start : start + _BLOCK] = np.arange(start, min(start + _BLOCK, len(items)))
    np.random.Generator(np.random.PCG64(seed)).shuffle(items)
    return items


def _search(indices: np.ndarray, item: int) -> int | None:
    for start in range(0, len(indices), _BLOCK):
        found = np.flatnonzero(indices[start : start + _BLOCK] == item)
        if len(found):
            return start + int(found[0])
    return None


def _round(half: np.ndarray, keys: np.ndarray, number: int) -> np.ndarray:
    return _mix(half ^ _mix(keys + np.uint64(number)))


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """The SplitMix64 step (Steele, Lea, Flood, 2014): uint64 to well-mixed uint64."""
    x = np.atleast_1d(x) + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around, scalars warn
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
