"""When and how a run evaluates itself."""

from dataclasses import dataclass

from jaxpretrain.config.durations import Steps


@dataclass(frozen=True)
class Eval:
    """Evaluation while training: before the first step, at intervals and at the end."""

    every: Steps = "1000 steps"
    """Interval; 0: only before the first step and at the end."""
    batch_size: int | None = None
    """Examples of one evaluation batch, over all devices; none: as many as the devices hold of a
    training microbatch."""
    max_examples: int | None = None
    """Only the first examples of each validation set; none: all."""
    prompts: tuple[str, ...] = ()
    """Texts that the model continues at each evaluation, logged as samples."""
    sample_tokens: int = 48
    """Length of each sample."""
