"""The fastest arrangement that fits, with few compilations.

Estimates rank all arrangements. The best of each remat policy is compiled: at the largest
microbatch that seems to fit and at the next one, until one fits and the next does not. Every
result corrects the estimates of its arrangement, so two compilations mostly do.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


Tell = Callable[[Experiment, Compiled], None]


def search(
    found: Sequence[Arrangement],
    limit: int,
    compiler: Compiler | None,
    *,
    deadline: float,
    tell: Tell,
) -> list[Trial]:
    """What fits into `limit` bytes of a device, the fastest first; [] when nothing does.

    Args:
      found: the arrangements to choose among.
      limit: bytes that a device has for the step.
      compiler: None: estimates are all there is.
      deadline: by `time.monotonic`; after it nothing more is compiled.
      tell: called with each compilation when it is done.
    """
    estimated = [t for a in found if (t := _estimated(a, limit)) is not None]
    estimated.sort(key=lambda trial: _rank(trial[1]))
    if compiler is None:
        return [trial for _, trial in estimated]
    # Estimates may be too high: what seems not to fit is tried last.
    hopeless = [a for a in found if all(a is not b for b, _ in estimated)]
    hopeless.sort(key=lambda a: a.memory(a.sizes[0]).total)
    trials: list[Trial] = []
    for arrangement in _chosen([a for a, _ in estimated]) + hopeless[:1]:
        if time.monotonic() > deadline:
            break
        if trials and arrangement in hopeless:
            break
        trial = _largest_that_fits(arrangement, limit, compiler, deadline, tell)
        if trial is not None:
            trials.append(trial)
    return sorted(trials, key=_rank)


def _rank(trial: Trial) -> tuple[float, int]:
    """By time; where times are equal to three digits, by memory."""
    return float(f"{trial.time.expected:.3g}"), trial.total


def _chosen(ranked: Sequence[Arrangement]) -> list[Arrangement]:
    """The best of each remat policy, then the next best; in the order of their rank."""
    best: dict[str, Arrangement] = {}
    for arrangement in ranked:
        best.setdefault(arrangement.program.experiment.model.remat, arrangement)
    others = [a for a in ranked if all(a is not b for b in best.values())]
    chosen = [*best.values(), *others][:_NUM_COMPILED]
    return [a for a in ranked if any(a is b for b in chosen)]


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
) -> Trial | None:
    sizes = arrangement.sizes
    results: dict[int, Compiled] = {}  # by index of the size
    low, high = -1, len(sizes)  # that one fits, that one does not
    while high - low > 1 and time.monotonic() < deadline:
        guess = _guess(arrangement, limit, results, low, high)
        indices = [i for i in (guess, guess + 1) if i < high][: compiler.num_workers]
        compiled = compiler.compile([arrangement.experiment(sizes[i]) for i in indices], tell)
        results |= dict(zip(indices, compiled, strict=True))
        for index, result in zip(indices, compiled, strict=True):
            if result.memory is not None and result.total <= limit:
                low = max(low, index)
            else:
                high = min(high, index)
    if low < 0:
        return None
    size = sizes[low]
    return Trial(
        arrangement.experiment(size),
        size,
        results[low].total,
        arrangement.time(size),
        results[low],
        is_largest=high - low == 1,
    )


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
