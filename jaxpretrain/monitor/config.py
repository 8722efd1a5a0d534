"""What a run logs."""

from dataclasses import dataclass
from typing import Literal

from jaxpretrain.config.durations import Steps


@dataclass(frozen=True)
class Monitor:
    """Logs, metrics and traces."""

    every: Steps = "10 steps"
    """Log interval."""
    tensorboard: bool = True
    """Write TensorBoard event files, through CLU's metric writers."""
    profile: tuple[int, int] | None = None
    """First and last step of an XProf trace, written to WORKDIR/profile."""
    mfu_attention: Literal["causal", "full"] = "causal"
    """Attention counted in perf/mfu: causal, the pairs that the mask lets through; full, all pairs,
    as most published figures count (a few points higher)."""
