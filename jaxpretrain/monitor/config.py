"""The config of logs, metrics and traces."""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxpretrain.config.durations import Steps
from jaxpretrain.config.ranges import Positive
from jaxpretrain.diagnosis.rules import NAMES


@dataclass(frozen=True)
class Monitor:
    """Logs, metrics and traces."""

    every: Annotated[Steps, Positive] = "10 steps"
    """The interval between logged steps; the first and the last step are logged too."""
    signals_every: Steps = "100 steps"
    """The interval between lines of signals.jsonl, with the norms, update ratios, attention logits
    and activations of each layer; 0 writes none. Training does not depend on it."""
    stop_on: tuple[Literal[NAMES], ...] = ()  # pyright: ignore[reportInvalidTypeForm]
    """The names of findings that end the run: it is saved first, and the command exits with 3."""
    tensorboard: bool = True
    """Writes TensorBoard event files, with CLU's metric writers."""
    profile: tuple[Annotated[int, Positive], Annotated[int, Positive]] | None = None
    """The first and the last step of an XProf trace, which is written to WORKDIR/profile."""
