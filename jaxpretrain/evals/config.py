"""When and how a run evaluates itself."""

from dataclasses import dataclass, fields, replace
from typing import Annotated

from jaxpretrain.config.durations import Steps
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.ranges import Positive
from jaxpretrain.config.schema import Mark
from jaxpretrain.evals.contract import Evaluation, Evaluator, Setting
from jaxpretrain.evals.downstream import Downstream
from jaxpretrain.evals.harness import Harness
from jaxpretrain.evals.held_out import HeldOut
from jaxpretrain.evals.linear_probe import LinearProbe
from jaxpretrain.evals.perplexity import Perplexity
from jaxpretrain.evals.samples import Continuations, Reconstructions
from jaxpretrain.evals.tasks.package import find_tokenizer


@dataclass(frozen=True)
class Eval:
    """Evaluation before the first step, at intervals and at the end, and by `evaluate`."""

    every: Annotated[Steps, Mark.SAME_SCORES] = "1000 steps"
    """Interval; 0: only before the first step and at the end."""
    max_examples: Annotated[int, Positive] | None = None
    """Largest number of examples of each validation set, the first ones; none: all."""
    tasks: tuple[str, ...] = ()
    """Tasks and groups such as core_small for each evaluation; `make evals` brings their data."""
    task_items: Annotated[int, Positive] | None = None
    """Largest number of items of each task, the first ones in OLMo's order; none: all."""
    tokenizer: PathText | None = None
    """Tokenizer of tasks: a tokenizer.json, or a name of `make evals`; none: that of the data."""
    samples: Annotated[Continuations | Reconstructions | None, Mark.SAME_SCORES] = None
    """Samples that are logged: continued texts, or pictures of images that are painted."""
    probe: LinearProbe | None = None
    """A few-shot linear classifier of the encoder's features, for labelled images."""
    harness: Harness | None = None
    """Tasks of lm-evaluation-harness."""
    perplexity: Perplexity | None = None
    """Perplexity of sets of raw token files."""

    def build(self, setting: Setting) -> list[Evaluator]:
        """Returns the evaluators, not compiled. All that can be wrong is an InputError here."""
        tokenizer = find_tokenizer(self.tokenizer) if self.tokenizer else setting.tokenizer_path
        setting = replace(setting, task_tokenizer=tokenizer, task_items=self.task_items)
        evaluators: list[Evaluator] = []
        if setting.eval_sets:
            evaluators.append(HeldOut(setting, max_examples=self.max_examples))
        if self.tasks:
            evaluators.append(Downstream.of_names(setting, self.tasks))
        parts = (getattr(self, field.name) for field in fields(self))
        return evaluators + [p.build(setting) for p in parts if isinstance(p, Evaluation)]
