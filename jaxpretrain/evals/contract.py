"""What an evaluator gives to the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxpretrain.data.contract import DataConfig, EvalSet, TrainingData
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
    source: DataConfig
    """The config of the training data."""
    data: TrainingData | None
    """The opened training data; None where nothing is read of it."""
    eval_sets: Sequence[EvalSet]
    batch_size: int
    """Examples of an evaluation batch, over all devices."""
    between_batches: Callable[[], None] = go_on
    """Called between batches, equally often in all processes; raises Interrupted."""

    @property
    def tokenizer_path(self) -> Path | None:
        """The `tokenizer.json` of the data; None where there is none."""
        return None if self.data is None else self.data.tokenizer_path

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a document of the data; (): it does not say."""
        eos_id = None if self.data is None else self.data.eos_id
        return () if eos_id is None else (eos_id,)


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
