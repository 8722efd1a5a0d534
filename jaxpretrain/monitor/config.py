"""What a run logs."""

from dataclasses import dataclass
from typing import Annotated

from jaxpretrain.config.durations import Steps
from jaxpretrain.config.ranges import Positive
from jaxpretrain.diagnosis.findings import Name


@dataclass(frozen=True)
class Monitor:
    """Logs, metrics and traces."""

    every: Annotated[Steps, Positive] = "10 steps"
    """Log interval; the first and the last step are logged too."""
    signals_every: Steps = "100 steps"
    """How often norms, update ratios, attention logits and activations of each layer are written to
    signals.jsonl; 0: never. Training computes the same whatever it is."""
    stop_on: tuple[Name, ...] = ()
    """Findings that end the run, by name: it is saved first, and the command exits with 1."""
    tensorboard: bool = True
    """Write TensorBoard event files, through CLU's metric writers."""
    profile: tuple[Annotated[int, Positive], Annotated[int, Positive]] | None = None
    """First and last step of an XProf trace, written to WORKDIR/profile."""
