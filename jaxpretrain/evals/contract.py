"""What every evaluation gives: a config, the evaluator that it builds, and named results.

An evaluation is one file with an `Evaluation`, and one field of `Eval`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.contract import DataConfig, EvalSet
from jaxpretrain.evals.scoring.scorer import Scorer, never_interrupt
from jaxpretrain.models.contract import Model, Params
from jaxpretrain.parallel.mesh import Layout


class Interrupted(Exception):
    """The run is asked to stop in the middle of an evaluation, which has no results."""


@dataclass(frozen=True)
class Setting:
    """The parts of a run that evaluators are built from."""

    model: Model
    layout: Layout
    params: Params
    """Parameters with their shardings, which may be abstract."""
    source: DataConfig
    """The config of the training data."""
    eval_sets: Sequence[EvalSet]
    batch_size: int
    """Examples of an evaluation batch, over all devices."""
    batch_tokens: int | None = None
    """Tokens of a batch of scored texts, over all devices; None: those of `batch_size` examples."""
    tokenizer_path: Path | None = None
    """The `tokenizer.json` of the data; None where there is none."""
    end_ids: tuple[int, ...] = ()
    """The tokens that end a document of the data; () where they are not known."""
    task_tokenizer: Path | None = None
    """The tokenizer of texts that are scored: that of `eval.tokenizer`, or else of the data."""
    task_items: int | None = None
    """The largest number of items of each task; None: all."""
    task_seed: int | None = None
    """The seed that draws these items; None: the first ones."""
    between_batches: Callable[[], None] = never_interrupt
    """Called between batches, equally often in all processes; raises Interrupted."""

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of texts, which evaluators share; InputError: the model predicts no tokens."""
        return Scorer(
            self.model,
            self.layout,
            self.params,
            batch_tokens=self.batch_tokens or self.batch_size * self.model.units_per_example()[1],
            between_batches=self.between_batches,
        )

    def require_task_tokenizer(self, what: str) -> Path:
        """Returns the tokenizer of texts that are scored; InputError, for `what`, without one."""
        if self.task_tokenizer is None:
            raise InputError(f"{what} need a tokenizer, and the data has none: set eval.tokenizer")
        return self.task_tokenizer

    def require_other_names(self, names: set[str], what: str) -> None:
        """Raises InputError where results of `what` would be mixed with those of held-out sets."""
        for eval_set in self.eval_sets:
            if eval_set.name in names:
                raise InputError(
                    f"{what}: {eval_set.name} is the name of a validation set too, and their "
                    "results would be mixed up; rename the set"
                )


@dataclass(frozen=True)
class Items:
    """The details of one evaluation, for the terminal and the files of the command `evaluate`."""

    document: Mapping[str, object]
    """Parts of the JSON document by key, such as {"tasks": {task: {metric: value}}}."""
    table: Sequence[str]
    """Lines for the terminal."""
    predictions: Iterable[Mapping[str, object]] = ()
    """A JSON object for each item that was scored; they may be read once."""


@dataclass(frozen=True)
class Results:
    """The results of one evaluation; names are full, such as `eval/sotu/loss`."""

    scalars: Mapping[str, float | None] = field(default_factory=dict)
    items: Items | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


class Evaluator(ABC):
    """An evaluation of one model. Building it checks and reads everything and compiles nothing."""

    def notes(self) -> list[str]:
        """Returns lines for the terminal, for before the first evaluation."""
        return []

    def compile(self) -> None:  # noqa: B027
        """Compiles what an evaluation runs, where that is known before the first one."""

    @abstractmethod
    def __call__(self, params: Params) -> Results:
        """Evaluates parameters that lie on the mesh of the setting; they stay as they are."""


def compile_evaluators(evaluators: Iterable[Evaluator], say: Callable[[str], None]) -> None:
    """Compiles evaluators in turn, and says the notes of each."""
    for evaluator in evaluators:
        evaluator.compile()
        for line in evaluator.notes():
            say(line)


class Evaluation(ABC):
    """The config of an evaluation: a frozen dataclass that is a field of `Eval`."""

    @abstractmethod
    def build(self, setting: Setting) -> Evaluator:
        """Returns the evaluator, not compiled; InputError where this model or data has none."""
