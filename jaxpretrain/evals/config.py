"""When and how a run evaluates itself."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from jaxpretrain.config.durations import Steps
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.ranges import BatchSize, Positive, Seed
from jaxpretrain.evals.contract import Evaluator, Setting
from jaxpretrain.evals.downstream import Downstream
from jaxpretrain.evals.generate import Samples, held_out_prompts
from jaxpretrain.evals.held_out import HeldOut
from jaxpretrain.evals.linear_probe import LinearProbe
from jaxpretrain.evals.reconstructions import Reconstructions
from jaxpretrain.evals.scoring.encode import TextEncoder
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.evals.tasks.catalogue import Selection, select
from jaxpretrain.evals.tasks.package import find_tokenizer


@dataclass(frozen=True)
class Eval:
    """Evaluation while training: before the first step, at intervals and at the end."""

    every: Steps = "1000 steps"
    """Interval; 0: only before the first step and at the end."""
    weights: Literal["current", "average"] = "current"
    """Which weights are evaluated: those being trained or their average (train.ema)."""
    batch_size: BatchSize | None = None
    """Examples of one evaluation batch, over all devices; none: as many as the devices hold of a
    training microbatch."""
    max_examples: Annotated[int, Positive] | None = None
    """Only the first examples of each validation set; none: all."""
    prompts: tuple[str, ...] | Literal["held_out"] = ()
    """Texts that the model continues at each evaluation, logged as samples. held_out: the beginning
    of the first document of each validation set, or nothing where the data has no tokenizer."""
    sample_tokens: Annotated[int, Positive] = 48
    """Length of each sample."""
    reconstructions: Reconstructions | None = None
    """Pictures of held-out images, for masked autoencoders."""
    probe: LinearProbe | None = None
    """A few-shot linear classifier of the encoder's features, for labelled images."""
    tasks: tuple[str, ...] = ()
    """Tasks and groups of tasks, such as core_small, that are scored at each evaluation; their data
    comes by `make evals`."""
    task_items: Annotated[int, Positive] | None = None
    """Only so many items of each task, drawn with task_seed; none: all."""
    task_seed: Seed = 1234
    """Seed of that draw, the same at each evaluation."""
    tokenizer: PathText | None = None
    """What tasks are read with: a tokenizer.json, or the name of one that `make evals` brings;
    none: the tokenizer of the data."""

    def build(self, setting: Setting) -> list[Evaluator]:
        """The evaluators, compiled for the parameters' own layout; raises as `prepare` does."""
        return [compile_() for compile_ in self.prepare(setting)]

    def prepare(self, setting: Setting) -> list[Callable[[], Evaluator]]:
        """What compiles each evaluator; all that can be wrong is found here, before that.

        Raises:
          InputError: something that is asked for cannot be evaluated on this model or data.
        """
        prepared: list[Callable[[], Evaluator]] = []
        if setting.eval_sets:
            prepared.append(partial(HeldOut, setting, max_examples=self.max_examples))
        prompts = held_out_prompts(setting) if self.prompts == "held_out" else self.prompts
        if prompts:
            prepared.append(partial(Samples, setting, prompts, self.sample_tokens))
        if self.reconstructions is not None:
            prepared.append(self.reconstructions.prepare(setting))
        if self.probe is not None:
            prepared.append(self.probe.prepare(setting))
        if self.tasks:
            prepared.append(partial(_downstream, setting, *self._tasks(setting)))
        return prepared

    def _tasks(self, setting: Setting) -> tuple[Path, Selection]:
        """The tokenizer that tasks are read with, and the tasks."""
        tokenizer = find_tokenizer(self.tokenizer) if self.tokenizer else setting.tokenizer_path
        if tokenizer is None:
            raise InputError(
                "eval.tasks need a tokenizer, and the data has none: set eval.tokenizer"
            )
        selection = select(self.tasks).take(self.task_items, self.task_seed)
        for eval_set in setting.eval_sets:
            if eval_set.name in selection.names:
                raise InputError(
                    f"eval.tasks: {eval_set.name} is the name of a validation set too, and their "
                    "results would be mixed up; rename the set"
                )
        return tokenizer, selection


def _downstream(setting: Setting, tokenizer: Path, selection: Selection) -> Downstream:
    scorer = Scorer(
        setting.model,
        setting.layout,
        setting.params,
        batch_tokens=setting.batch_size * setting.model.units_per_example()[1],
        between_batches=setting.between_batches,
    )
    return Downstream(scorer, TextEncoder(tokenizer, scorer.vocab_size), selection)
