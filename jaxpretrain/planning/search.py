"""The search for the fastest arrangement that fits, with few compilations.

Estimates rank all arrangements. The best of each remat policy is compiled: at the largest
microbatch that should fit and at the next one, until one fits and the next does not. Every result
corrects the estimates of its arrangement, so two compilations are mostly enough.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxpretrain.planning.arrangements import Arrangement
from jaxpretrain.planning.compiled import Compiled, Compiler
from jaxpretrain.planning.estimates import StepTime
from jaxpretrain.train.memory import Memory
from jaxpretrain.train.resolved import Resolved

_NUM_COMPILED = 4
"""The most arrangements that are compiled, usually at two sizes each."""


@dataclass(frozen=True)
class Trial:
    """One arrangement with a microbatch of one size."""

    experiment: Resolved
    size: int
    """The examples of a microbatch."""
    total: int
    """Bytes that a device holds at its peak, compiled or estimated."""
    memory: Memory
    """The parts of the total, estimated where the compiler gave none."""
    time: StepTime
    compiled: Compiled | None
    """The result of the compiler; None where `total` is an estimate."""
    is_largest: bool
    """True where the next larger microbatch does not fit or does not exist."""

    def fits(self, limit: int) -> bool:
        """Returns True if `limit` bytes suffice, compiled or else estimated."""
        return self.total <= limit if self.compiled is None else self.compiled.fits(limit)


def make_trial(
    arrangement: Arrangement, size: int, compiled: Compiled | None, *, is_largest: bool
) -> Trial:
    """Returns the trial of an arrangement at a microbatch size; estimated if not compiled."""
    memory = (compiled and compiled.memory) or arrangement.memory(size)
    total = memory.total if compiled is None else compiled.total
    experiment, seconds = arrangement.experiment(size), arrangement.time(size)
    return Trial(experiment, size, total, memory, seconds, compiled, is_largest)


def search(
    found: Sequence[Arrangement],
    limit: int,
    compiler: Compiler | None,
    *,
    goal: Literal["frontier", "fastest"] = "frontier",
    deadline: float,
) -> list[Trial]:
    """Returns the trials that fit `limit` bytes of a device, the fastest first; [] where none does.

    Without a compiler the estimates are the result. The goal "frontier" tries every remat policy;
    "fastest" stops when no other estimate is faster than a trial that fits. Nothing more is
    compiled after the deadline, a time of `time.monotonic`.
    """
    trials_of = [(arrangement, _estimated(arrangement, limit)) for arrangement in found]
    hopeless = [arrangement for arrangement, trial in trials_of if trial is None]
    estimated = [(arrangement, trial) for arrangement, trial in trials_of if trial is not None]
    estimated.sort(key=lambda pair: _rank(pair[1]))
    if compiler is None:
        return [trial for _, trial in estimated]
    trials: list[Trial] = []
    for arrangement, estimate in _chosen(estimated):
        is_over = goal == "fastest" and trials and min(map(_rank, trials)) <= _rank(estimate)
        if is_over or time.monotonic() > deadline:
            break
        trials += _largest_that_fits(arrangement, limit, compiler, deadline)
    # Estimates may be too high. Where nothing else fits, the least of the others is tried.
    if hopeless and not trials and time.monotonic() <= deadline:
        least = min(hopeless, key=lambda a: a.memory(a.sizes[0]).total)
        trials += _largest_that_fits(least, limit, compiler, deadline)
    return sorted(trials, key=_rank)


def _rank(trial: Trial) -> tuple[float, int]:
    """Ranks by time to three digits, then by memory."""
    return float(f"{trial.time.expected:.3g}"), trial.total


def _chosen(ranked: Sequence[tuple[Arrangement, Trial]]) -> list[tuple[Arrangement, Trial]]:
    """Returns the best of each remat policy, then the next best, in the order of their rank."""
    seen: set[str] = set()
    first, others = [], []
    for rank, (arrangement, _) in enumerate(ranked):
        remat = arrangement.program.experiment.model.remat
        (others if remat in seen else first).append(rank)
        seen.add(remat)
    return [ranked[rank] for rank in sorted([*first, *others][:_NUM_COMPILED])]


def _estimated(arrangement: Arrangement, limit: int) -> Trial | None:
    """Returns the trial at the largest microbatch that should fit."""
    for size in reversed(arrangement.sizes):
        if arrangement.memory(size).total <= limit:
            is_largest = size == arrangement.sizes[-1]
            return make_trial(arrangement, size, None, is_largest=is_largest)
    return None


def _largest_that_fits(
    arrangement: Arrangement, limit: int, compiler: Compiler, deadline: float
) -> list[Trial]:
    """Returns the trial at the largest microbatch that fits; [] where the smallest does not."""
    sizes = arrangement.sizes
    estimates = [arrangement.memory(size).total for size in sizes]
    results: dict[int, Compiled] = {}  # by index of the size
    low, high = -1, len(sizes)  # the size at `low` fits, the size at `high` does not
    while high - low > 1 and time.monotonic() < deadline:
        between = range(low + 1, high)
        fitting = [i for i in between if _corrected(estimates, results, i) <= limit]
        guess = max(fitting, default=low + 1)
        indices = [i for i in (guess, guess + 1) if i < high][: compiler.num_workers]
        compiled = compiler.compile([arrangement.experiment(sizes[i]) for i in indices])
        results |= dict(zip(indices, compiled, strict=True))
        for index, result in zip(indices, compiled, strict=True):
            if result.fits(limit):
                low = max(low, index)
            else:
                high = min(high, index)
    if low < 0:
        return []
    return [make_trial(arrangement, sizes[low], results[low], is_largest=high - low == 1)]


def _corrected(estimates: Sequence[int], results: dict[int, Compiled], index: int) -> float:
    """Returns the estimate for a size, corrected by the nearest compiled ones."""
    if not results:
        return estimates[index]
    near = sorted(results, key=lambda i: abs(i - index))[:2]
    first, second = near[0], near[-1]
    at, span = results[first].total, estimates[second] - estimates[first]
    slope = (results[second].total - at) / span if span else 1.0
    return at + slope * (estimates[index] - estimates[first])
