"""When a training that has ended is started again: the one table that all engines are given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxpretrain.config.command import EXIT_STALLED, EXIT_STOPPED

Again = Literal["never", "at once", "while progress"]
"""never: it is complete, or would end the same way. at once: it was asked to stop, and has saved.
while progress: it was cut off; again where a checkpoint is newer than at the last start, else only
a number of times."""

AGAIN: dict[int, Again] = {
    0: "never",  # complete
    1: "while progress",  # a failure
    2: "never",  # a bad flag, config or input
    3: "never",  # the run judged itself
    EXIT_STOPPED: "at once",
    EXIT_STALLED: "while progress",
    130: "never",  # Ctrl-C: a person ended it
}
"""Exit code of the training command -> when it is started again."""

NOTHING_SAVED = -1
"""The newest step of a run without a checkpoint."""


def again_after(code: int) -> Again:
    """Returns when a training is started again that ended with an exit code.

    A code that is not in the table is that of a crash, such as 134 or 137.
    """
    return AGAIN.get(code, "while progress")


def codes_of(again: Again, *, failures_only: bool = False) -> list[int]:
    """Returns the exit codes in the table for an answer, ascending; 0 is no failure."""
    codes = sorted(code for code, answer in AGAIN.items() if answer == again)
    return [code for code in codes if code or not failures_only]


def newest_step(workdir: Path) -> int:
    """Returns the step of a run's newest checkpoint; `NOTHING_SAVED` where there is none."""
    from jaxpretrain.checkpoints.orbax import finished_steps  # takes seconds

    return max(finished_steps(workdir / "checkpoints"), default=NOTHING_SAVED)


@dataclass
class Attempts:
    """The starts of a run, counted as long as they make no progress."""

    max_restarts: int
    """The number of times that a run is started again without a newer checkpoint."""
    newest: int
    """The step of the newest checkpoint at the last start."""
    failures: int = 0
    """The number of failed starts since the last progress."""

    def goes_on(self, code: int, newest: int) -> bool:
        """Returns True where the run is started again after an exit code.

        `newest` is the step of the newest checkpoint now.
        """
        again, has_progress = again_after(code), newest > self.newest
        self.newest = newest
        if has_progress:
            self.failures = 0
        if again != "while progress":
            return again == "at once"
        self.failures += not has_progress
        return self.failures <= self.max_restarts
