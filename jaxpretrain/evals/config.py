"""When and how a run evaluates itself."""

from dataclasses import dataclass
from typing import Literal

from jaxpretrain.config.durations import Steps
from jaxpretrain.evals.contract import Evaluator, Setting
from jaxpretrain.evals.generate import Samples
from jaxpretrain.evals.held_out import HeldOut


@dataclass(frozen=True)
class Eval:
    """Evaluation while training: before the first step, at intervals and at the end."""

    every: Steps = "1000 steps"
    """Interval; 0: only before the first step and at the end."""
    weights: Literal["current", "average"] = "current"
    """Which weights are evaluated: those being trained or their average (train.ema)."""
    batch_size: int | None = None
    """Examples of one evaluation batch, over all devices; none: as many as the devices hold of a
    training microbatch."""
    max_examples: int | None = None
    """Only the first examples of each validation set; none: all."""
    prompts: tuple[str, ...] = ()
    """Texts that the model continues at each evaluation, logged as samples."""
    sample_tokens: int = 48
    """Length of each sample."""

    def build(self, setting: Setting) -> list[Evaluator]:
        """The evaluators, compiled for the parameters' own layout.

        Raises:
          InputError: something that is asked for cannot be evaluated on this model or data.
        """
        evaluators: list[Evaluator] = []
        if setting.eval_sets:
            evaluators.append(HeldOut(setting, max_examples=self.max_examples))
        if self.prompts:
            evaluators.append(Samples(setting, self.prompts, self.sample_tokens))
        return evaluators
