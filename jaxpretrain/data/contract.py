"""What every source of data gives: a config, the training data it opens and its evaluation sets.

A source is one file with a `DataConfig`, and one name in `sources.DataChoice`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self, runtime_checkable

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Positive
from jaxpretrain.config.schema import Mark
from jaxpretrain.data.order.order import OlmoOrder, OrderChoice

Batch = dict[str, np.ndarray]
"""Arrays by name, with one row for each example."""

Spec = dict[str, tuple[tuple[int, ...], str]]
"""Name -> (shape, dtype) of the arrays of one example."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(ABC):
    """The config of the data of a run: what its examples are, and how they are opened."""

    num_examples: Annotated[int | None, Positive, Mark.NO_EFFECT, Mark.SAME_SCORES] = None
    """Declared number of examples of an epoch, which is verified when the data is opened; none: it
    is counted. An epoch of a mixture lasts until its first source would repeat."""
    skip: Annotated[tuple[str, ...], Mark.MAY_CHANGE, Mark.SAME_SCORES] = ()
    """Samples that are left out, by their position in the order of the data, both ends included:
    100-199,350-360. Batches stay full, and steps go on; ranges may be added that a run has not come
    to."""
    order: Annotated[OrderChoice, Mark.SAMPLE_ORDER, Mark.SAME_SCORES] = OlmoOrder()
    """Order of the examples; of a mixture, within each source."""

    @abstractmethod
    def example_spec(self) -> Spec:
        """Returns the arrays of one example that the model reads, known without the data."""

    def extra_spec(self) -> Spec:
        """Returns the arrays that batches hold beside those of the model."""
        return {}

    def source_names(self) -> tuple[str, ...]:
        """Returns the sources whose losses are reported apart, in the order of their numbers."""
        return ()

    @abstractmethod
    def units_per_example(self) -> tuple[str, int]:
        """Returns the unit of durations and throughput, and the number of them in an example."""

    @property
    def changes_over_time(self) -> bool:
        """True where the length of an epoch depends on the durations inside this config."""
        return False

    def unhashed(self) -> Self:
        """Returns this config with its files checked by their sizes alone, which is quick."""
        return self

    def check_num_examples(self, found: int, unit: str, where: object) -> None:
        """Raises InputError where the config declares another number of examples than there are."""
        if self.num_examples not in (None, found):
            raise InputError(
                f"data.num_examples declares {self.num_examples} {unit}, but an epoch of {where}"
                f" has {found}; set data.num_examples={found}"
            )

    @abstractmethod
    def open(self, *, seed: int, limits: Mapping[str, int]) -> "TrainingData":
        """Opens and checks the training data, in the order that the seed gives.

        `limits` are the model's: the ids of `tokens`, say, must lie below `limits["tokens"]`.
        Raises InputError where the data is missing, damaged, or not what the config says.
        """

    @abstractmethod
    def open_evals(self, *, limits: Mapping[str, int]) -> Sequence["EvalSet"]:
        """Opens the held-out examples; none where the data has none. Raises as `open` does."""


@dataclass(frozen=True, kw_only=True)
class TrainingData(ABC):
    """Opened training data. Sample k of a run is a pure function of the seed and k."""

    num_examples: int
    """Number of examples of one epoch."""
    fingerprint: str
    """A hash of the data and its order; other data or another order has another one."""
    notes: tuple[str, ...] = ()
    """Lines about what was found when the data was opened."""
    tokenizer_path: Path | None = None
    """The `tokenizer.json` of the data, where it is known."""
    eos_id: int | None = None
    """The token that ends each document, where it is known."""
    num_workers: int = 0
    """Number of processes that should call `batch`; 0: a thread of this one."""

    @abstractmethod
    def batch(self, samples: np.ndarray) -> Batch:
        """Returns the rows of the run's samples, int64 [n]."""

    @abstractmethod
    def describe(self) -> str:
        """Returns one line for the start of a run."""

    def epochs(self, num_samples: int) -> dict[str, float]:
        """Returns the metric `epochs`: the passes over the data in the first samples of the run."""
        return {"epochs": num_samples / self.num_examples}

    def report(self) -> list[str]:
        """Returns warnings about what reading has found since the last call."""
        return []


@dataclass(frozen=True, kw_only=True)
class EvalSet(ABC):
    """Held-out examples in a fixed order."""

    name: str
    """The name in metrics: `eval/<name>/...`."""
    num_examples: int
    """Number of examples of the set."""
    notes: tuple[str, ...] = ()
    """Lines about what was found when the set was opened."""

    @abstractmethod
    def batch(self, indices: np.ndarray) -> Batch:
        """Returns the rows of the examples at these indices, int64 [n]."""

    def target_bytes(self, batch: Batch) -> np.ndarray | None:
        """Returns the UTF-8 bytes of each row's targets, int64 [n]; None where nothing tells."""
        del batch
        return None


@dataclass(frozen=True, kw_only=True)
class LabelledSet(EvalSet):
    """Held-out examples with their classes."""

    classes: tuple[str, ...]
    """The names of the classes; a label is an index of one."""

    @abstractmethod
    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the numbers of the classes of the examples at these indices, int32 [n]."""


@runtime_checkable
class LabelledSource(Protocol):
    """The config of data that has labels."""

    @property
    def eval_name(self) -> str:
        """The name of its set in metrics: `eval/<name>/...`."""
        ...

    def example_spec(self) -> Spec:
        """Returns the arrays of one example."""
        ...

    def open_labelled(self, split: Literal["train", "validation"]) -> LabelledSet:
        """Opens the images of a split. Raises InputError where they have no labels."""
        ...


def fingerprint(content: object) -> str:
    """Returns 16 hexadecimal digits that change with the content, which is JSON-like."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
