"""The global data order: sample k of a run is a pure function of (seed, k).

It knows nothing of hosts, workers or restarts: those only decide who reads a sample. So the
whole state of the data is one integer. Both orders visit every example once in each epoch.
"""

import math
import threading
from typing import Literal, Protocol

import numpy as np

from jaxpretrain.config.errors import InputError

OrderName = Literal["olmo", "hashed"]


class Order(Protocol):
    """Maps sample numbers of the run, int64 [n], to example indices, int64 [n]."""

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The example that each sample is."""
        ...


def make_order(name: OrderName, num_examples: int, seed: int) -> Order:
    """The order of that name; `seed` and `num_examples` determine it."""
    orders = {"olmo": OlmoOrder, "hashed": HashedOrder}
    return orders[name](num_examples, seed)


class OlmoOrder(Order):
    """OLMo's own order, bit for bit (OLMo, olmo/data/iterable_dataset.py).

    Epoch e is `arange(n, uint32)` shuffled by NumPy's PCG64(seed + e). Takes 4 bytes of memory
    an example for each of at most two epochs, and one shuffle when an epoch begins. OLMo cuts
    or pads an epoch to a multiple of its number of GPUs; here every epoch has n samples.
    """

    def __init__(self, num_examples: int, seed: int):
        _check_size(num_examples)
        if num_examples > 2**32:
            raise InputError(
                f"data.order=olmo numbers examples with 32 bits, and there are {num_examples};"
                " set data.order=hashed"
            )
        self.num_examples = num_examples
        self.seed = seed
        self._permutations: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Shuffles when a sample is the first of its epoch: seconds for 1e8 examples."""
        epochs, positions = np.divmod(samples, self.num_examples)
        indices = np.empty(len(samples), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[positions[here]]
        return indices

    def _permutation(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._permutations:
                # A batch may straddle two epochs; an older one is never asked for again.
                while len(self._permutations) >= 2:
                    del self._permutations[min(self._permutations)]
                permutation = np.arange(self.num_examples, dtype=np.uint32)
                generator = np.random.Generator(np.random.PCG64(self.seed + epoch))
                generator.shuffle(permutation)
                self._permutations[epoch] = permutation
            return self._permutations[epoch]

    def __getstate__(self) -> dict[str, int]:
        return {"num_examples": self.num_examples, "seed": self.seed}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)


class HashedOrder(Order):
    """An order in constant memory, for indexes too large to keep a permutation of.

    Writes an index as (left, right) on a grid of about sqrt(n) by sqrt(n) cells and applies a
    keyed Feistel network with additions modulo the sides (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002). The grid has at most sqrt(n) + 1 cells more than there are
    examples; an index that lands on one of those walks on until it is back inside.
    """

    ROUNDS = 8

    def __init__(self, num_examples: int, seed: int):
        _check_size(num_examples)
        self.num_examples = num_examples
        self.seed = seed
        self._height = np.uint64(math.isqrt(num_examples - 1) + 1)
        self._width = np.uint64(-(-num_examples // int(self._height)))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The same time for every sample."""
        epochs, positions = np.divmod(samples.astype(np.uint64), np.uint64(self.num_examples))
        keys = _mix(epochs + _mix(np.uint64(self.seed % 2**64)))
        indices = self._permute(positions, keys)
        while (outside := indices >= self.num_examples).any():
            indices[outside] = self._permute(indices[outside], keys[outside])
        return indices.astype(np.int64)

    def _permute(self, cells: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """A bijection of the grid's cells, uint64 [n]; `keys`, uint64 [n], choose it."""
        left, right = np.divmod(cells, self._width)
        for number in range(0, self.ROUNDS, 2):
            left = (left + _mix(right ^ _mix(keys + np.uint64(number)))) % self._height
            right = (right + _mix(left ^ _mix(keys + np.uint64(number + 1)))) % self._width
        return left * self._width + right


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """The SplitMix64 step (Steele, Lea, Flood, 2014): uint64 to well-mixed uint64."""
    x = np.atleast_1d(x) + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around, scalars warn
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _check_size(num_examples: int) -> None:
    if num_examples < 1:
        raise InputError("there are no training examples: the data holds not one full sequence")
