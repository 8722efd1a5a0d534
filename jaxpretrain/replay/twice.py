"""Is it the hardware: a stretch computed twice, whose states and gradients must be the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import jax
import numpy as np

from jaxpretrain.checkpoints.names import checksums, to_named
from jaxpretrain.replay.stretch import Look, Seen, Step, Stretch, Upcoming
from jaxpretrain.replay.suspects import Suspect
from jaxpretrain.train.recheck import describe_unequal

Checksums = dict[str, np.ndarray]


class Recorder(Generic[Seen]):
    """Takes checksums of the state and of the gradient at each step, beside another look."""

    def __init__(self, look: Look[Seen] | None = None) -> None:
        self._look = look
        self.states: dict[int, Checksums] = {}
        """Step -> checksum of each array of the state before it."""
        self.gradients: dict[int, Checksums] = {}
        """Step -> checksums of each array of its gradient, by groups of devices."""

    def __call__(self, step: Upcoming) -> Seen | None:
        """Takes the checksums, and returns what the other look sees."""
        self.states[step.number] = jax.device_get(checksums(to_named(step.state)))
        self.gradients[step.number] = step.stage.recheck.checksums(step.state, step.batch)
        return self._look(step) if self._look else None


@dataclass(frozen=True)
class Twice:
    """The comparison of two computations of a stretch."""

    words: str
    suspect: Suspect | None
    """The process and the devices that computed differently; None where all bits are the same."""


def compare(
    stretch: Stretch,
    one: tuple[Recorder[Seen], Sequence[Step[Seen]]],
    other: tuple[Recorder[Seen], Sequence[Step[Seen]]],
) -> Twice:
    """Returns the comparison of two computations, each with its recorder and its steps."""
    for here, there in zip(one[1], other[1], strict=True):
        step, where = here.number, None
        if step in one[0].gradients:
            recheck = stretch.stages.at(step).recheck
            found = recheck.compare(one[0].gradients[step], other[0].gradients[step])
            where = describe_unequal(found)
            states = one[0].states[step], other[0].states[step]
            changed = [name for name in states[0] if states[0][name] != states[1][name]]
            if where is None and changed:
                where = f"in {changed[0]} of the state before it"
        if where is None and _bits(here) != _bits(there):
            where = "in what is reported of it"
        if where is not None:
            words = f"computed twice, step {step:,} differs {where}"
            return Twice(words, Suspect("process", where, step, 1.0, words))
    count = len(one[1])
    return Twice(f"computed twice: the same bits in all {count} steps", None)


def _bits(step: Step[Seen]) -> list[bytes]:
    values = [*step.metrics.items(), *step.signals.items()]
    return [name.encode() + np.asarray(value).tobytes() for name, value in values]
