"""The fastest arrangement that fits, with few compilations.

Estimates rank all arrangements. The best of each remat policy is compiled: at the largest
microbatch that seems to fit and at the next one, until one fits and the next does not. Every
result corrects the estimates of its arrangement, so two compilations mostly do.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxpretrain.planning.arrangements import Arrangement
from jaxpretrain.planning.compiled import Compiled
from jaxpretrain.planning.pool import Compiler
from jaxpretrain.planning.time_model import StepTime
from jaxpretrain.train.experiment import Experiment

_NUM_COMPILED = 4
"""Arrangements that are compiled, at two sizes mostly."""


@dataclass(frozen=True)
class Trial:
    """One arrangement in portions of one size."""

    experiment: Experiment
    size: int
    """Its microbatch."""
    total: int
    """Bytes of a device at the peak."""
    time: StepTime
    compiled: Compiled | None
    """None: `total` is an estimate."""
    is_largest: bool
    """Whether the next larger microbatch was seen not to fit, or there is none."""

    def fits(self, limit: int) -> bool:
        """Whether a device with so many bytes has room, as far as is known."""
        return self.total <= limit if self.compiled is None else self.compiled.fits(limit)


Tell = Callable[[Experiment, Compiled], None]


def search(
    found: Sequence[Arrangement],
    limit: int,
    compiler: Compiler | None,
    *,
    goal: Literal["frontier", "fastest"] = "frontier",
    deadline: float,
    tell: Tell,
) -> list[Trial]:
    """What fits into `limit` bytes of a device, the fastest first; [] when nothing does.

    Args:
      found: the arrangements to choose among.
      limit: bytes that a device has for the step.
      compiler: None: estimates are all there is.
      goal: what each remat policy comes to; or no more than the fastest: then the search ends when
        no other estimate is faster than what fits.
      deadline: by `time.monotonic`; after it nothing more is compiled.
      tell: called with each compilation when it is done.
    """
    estimated = [pair for a in found if (pair := _estimated(a, limit)) is not None]
    estimated.sort(key=lambda pair: _rank(pair[1]))
    if compiler is None:
        return [trial for _, trial in estimated]
    trials: list[Trial] = []
    for arrangement, estimate in _chosen(estimated):
        is_over = goal == "fastest" and trials and min(map(_rank, trials)) <= _rank(estimate)
        if is_over or time.monotonic() > deadline:
            break
        trials += _largest_that_fits(arrangement, limit, compiler, deadline, tell)
    # Estimates may be too high: the least of what seems not to fit, when all else does not.
    hopeless = [a for a in found if all(a is not b for b, _ in estimated)]
    if hopeless and not trials and time.monotonic() <= deadline:
        least = min(hopeless, key=lambda a: a.memory(a.sizes[0]).total)
        trials += _largest_that_fits(least, limit, compiler, deadline, tell)
    return sorted(trials, key=_rank)


def _rank(trial: Trial) -> tuple[float, int]:
    """By time; where times are equal to three digits, by memory."""
    return float(f"{trial.time.expected:.3g}"), trial.total


def _chosen(ranked: Sequence[tuple[Arrangement, Trial]]) -> list[tuple[Arrangement, Trial]]:
    """The best of each remat policy, then the next best; in the order of their rank."""
    seen: set[str] = set()
    first, others = [], []
    for rank, (arrangement, _) in enumerate(ranked):
        remat = arrangement.program.experiment.model.remat
        (others if remat in seen else first).append(rank)
        seen.add(remat)
    return [ranked[rank] for rank in sorted([*first, *others][:_NUM_COMPILED])]


def _estimated(arrangement: Arrangement, limit: int) -> tuple[Arrangement, Trial] | None:
    """At the largest microbatch that seems to fit."""
    for size in reversed(arrangement.sizes):
        total = arrangement.memory(size).total
        if total <= limit:
            experiment = arrangement.experiment(size)
            largest = size == arrangement.sizes[-1]
            trial = Trial(experiment, size, total, arrangement.time(size), None, largest)
            return arrangement, trial
    return None


def _largest_that_fits(
    arrangement: Arrangement, limit: int, compiler: Compiler, deadline: float, tell: Tell
) -> list[Trial]:
    """The one trial of an arrangement that fits; none where the smallest microbatch does not."""
    sizes = arrangement.sizes
    results: dict[int, Compiled] = {}  # by index of the size
    low, high = -1, len(sizes)  # that one fits, that one does not
    while high - low > 1 and time.monotonic() < deadline:
        guess = _guess(arrangement, limit, results, low, high)
        indices = [i for i in (guess, guess + 1) if i < high][: compiler.num_workers]
        compiled = compiler.compile([arrangement.experiment(sizes[i]) for i in indices], tell)
        results |= dict(zip(indices, compiled, strict=True))
        for index, result in zip(indices, compiled, strict=True):
            if result.fits(limit):
                low = max(low, index)
            else:
                high = min(high, index)
    if low < 0:
        return []
    size, result = sizes[low], results[low]
    trial = Trial(
        arrangement.experiment(size),
        size,
        result.total,
        arrangement.time(size),
        result,
        is_largest=high - low == 1,
    )
    return [trial]


def _guess(
    arrangement: Arrangement, limit: int, results: dict[int, Compiled], low: int, high: int
) -> int:
    """The index between `low` and `high` of the largest size that seems to fit."""
    fitting = [
        index for index in range(low + 1, high) if _corrected(arrangement, results, index) <= limit
    ]
    return max(fitting, default=low + 1)


def _corrected(arrangement: Arrangement, results: dict[int, Compiled], index: int) -> float:
    """The estimate for a size, moved by what compiling the nearest ones gave."""

    def estimate(i: int) -> float:
        return float(arrangement.memory(arrangement.sizes[i]).total)

    if not results:
        return estimate(index)
    near = sorted(results, key=lambda i: abs(i - index))[:2]
    at = results[near[0]].total
    slope = 1.0
    if len(near) > 1 and (span := estimate(near[1]) - estimate(near[0])):
        slope = (results[near[1]].total - at) / span
    return at + slope * (estimate(index) - estimate(near[0]))
