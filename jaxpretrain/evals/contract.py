"""What an evaluator gives to the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from jaxpretrain.models.contract import Model
from jaxpretrain.parallel.mesh import Layout


@dataclass(frozen=True)
class Results:
    """Named results of one evaluation; names are full, such as `eval/sotu/loss`."""

    scalars: Mapping[str, float | None] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


class Interrupted(Exception):
    """The run is asked to stop in the middle of an evaluation, which has no results."""


def go_on() -> None:
    """Never interrupts an evaluation."""


@dataclass(frozen=True)
class Setting:
    """What evaluators are built from: the training mesh and all that the run has opened."""

    model: Model
    layout: Layout
    params: Any
    """Abstract parameters with their shardings."""
    source: Any
    """The config of the training data."""
    data: Any
    """The training data, as opened."""
    eval_sets: Sequence["EvalSet"]
    batch_size: int
    """Examples of an evaluation batch, over all devices."""
    between_batches: Callable[[], None] = go_on
    """Called between batches, equally often in all processes; raises Interrupted."""

    @property
    def tokenizer_path(self) -> Path | None:
        """The `tokenizer.json` of the data; None where there is none."""
        return self.data.tokenizer_path

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a document of the data; (): it does not say."""
        return () if self.data.eos_id is None else (self.data.eos_id,)


Evaluator = Callable[[Any], Results]
"""Parameters on their mesh -> results. Must leave the parameters as they are."""


@runtime_checkable
class HasNotes(Protocol):
    """An evaluator that has something to tell before the first evaluation."""

    def notes(self) -> list[str]:
        """Lines for the terminal."""
        ...


def notes_of(evaluators: Sequence[Evaluator]) -> list[str]:
    """What evaluators have to tell before the first evaluation."""
    return [line for e in evaluators if isinstance(e, HasNotes) for line in e.notes()]


class EvalSet(Protocol):
    """Held-out examples."""

    @property
    def name(self) -> str:
        """What results are named by."""
        ...

    @property
    def num_examples(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples by index, arrays with first axis len(indices)."""
        ...

    def target_bytes(self, batch: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """UTF-8 bytes that each example's targets stand for, int [n]; None when unknown."""
        ...


class LabelledSet(Protocol):
    """Images with their classes."""

    @property
    def num_examples(self) -> int:
        """How many there are."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what labels count."""
        ...

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples by index, arrays with first axis len(indices)."""
        ...

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of their classes, int [n]."""
        ...


@runtime_checkable
class LabelledSource(Protocol):
    """The config of data that has labels."""

    @property
    def eval_name(self) -> str:
        """What results are named by."""
        ...

    def example_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of an example."""
        ...

    def open_labelled(self, split: Literal["train", "validation"]) -> LabelledSet:
        """The images of a split."""
        ...
