"""Learning-rate schedules: typed objects composed with `optax.join_schedules`.

`build(num_steps)` gives a function of s, the number of the update counted from 1 as OLMo counts
it: the first update of a run uses s = 1, the last s = num_steps. A warm-up longer than the run is
legal: the run then ends inside it.

OLMo can count its schedules in tokens, those of the batch at hand included. That is s times the
tokens of a batch, so a length in tokens becomes a length in steps, once, rounded up; a fraction of
a step is all that can differ.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import optax

from jaxpretrain.config.durations import Steps, whole_steps
from jaxpretrain.config.ranges import Between, Positive

Rate = Annotated[float, Between(0, 1000)]
"""The type of a field that holds a learning rate."""

Phases = list[tuple[str, int]]
"""(name, first step) of each phase, for logs and reports."""


class _Warmed:
    """What begins with a linear rise: the fields that its dataclasses share."""

    start: Rate
    peak: Rate
    warmup: Steps

    def build(self, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of s."""
        warmup = whole_steps(self.warmup)
        return optax.join_schedules(
            [
                _line(self.start, self.peak, warmup),
                self._after_warmup(warmup, num_steps),
            ],
            [warmup],
        )

    def phases(self, num_steps: int) -> Phases:
        """(name, first step) of each phase of the run."""
        return _inside([("warmup", 0), ("decay", whole_steps(self.warmup))], num_steps)

    def _after_warmup(self, warmup: int, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of the steps since the warm-up."""
        raise NotImplementedError


@dataclass(frozen=True)
class Triangular(_Warmed):
    """OLMo-7B's schedule: linear up to the peak, linear down to the end."""

    start: Rate = 3e-5
    """Learning rate at s = 0."""
    peak: Rate = 3e-4
    """Learning rate at the end of the warm-up."""
    end: Rate = 3e-5
    """Learning rate at the horizon and after it."""
    warmup: Steps = "5000 steps"
    """Length of the rise."""
    horizon: Annotated[Steps, Positive] | None = None
    """Where the descent ends, counted from the start of the run; none: where the run ends."""

    def _after_warmup(self, warmup: int, num_steps: int) -> optax.Schedule:
        return _line(self.peak, self.end, _horizon(self.horizon, num_steps) - warmup)


CosineShape = Literal["cosine", "cosine_linear", "cosine_or_inverse_sqrt", "second_half"]


@dataclass(frozen=True)
class WarmupCosine(_Warmed):
    """Linear warm-up, then down to the end along a cosine."""

    start: Rate = 0.0
    """Learning rate at s = 0; unless told otherwise, OLMo's trainer takes a tenth of the peak."""
    peak: Rate = 3e-4
    """Learning rate at the end of the warm-up."""
    end: Rate = 3e-5
    """Learning rate at the horizon and after it."""
    warmup: Steps = "2000 steps"
    """Length of the rise."""
    horizon: Annotated[Steps, Positive] | None = None
    """Where the cosine ends, counted from the start of the run; none: where the run ends. OLMo 2
    planned 5e12 tokens and stopped before."""
    shape: CosineShape = "cosine"
    """With p from 0 at the peak to 1 at the horizon, the part of peak - end that is left:
    cosine: (1 + cos(pi p)) / 2.
    cosine_linear: that times 1 - p (OLMo's cosine_linear_envelope).
    cosine_or_inverse_sqrt: cosine, or peak * sqrt(warmup / s) where that is higher (OLMo's
    max_scheduler).
    second_half: 1 - sin(pi p / 2), a cosine from its middle on (OLMo-core's HalfCosWithWarmup,
    whose learning rate is the whole cosine's peak; here `peak` is the one that is reached)."""

    def _after_warmup(self, warmup: int, num_steps: int) -> optax.Schedule:
        length = max(_horizon(self.horizon, num_steps) - warmup, 1)

        def after(s):
            p = jnp.clip(s / length, 0.0, 1.0)
            if self.shape == "second_half":
                left = 1.0 - jnp.sin(0.5 * jnp.pi * p)
            else:
                left = 0.5 * (1.0 + jnp.cos(jnp.pi * p))
            if self.shape == "cosine_linear":
                left *= 1.0 - p
            left = jnp.where(s < length, jnp.maximum(left, 0.0), 0.0)
            rate = self.end + (self.peak - self.end) * left
            if self.shape == "cosine_or_inverse_sqrt":
                return jnp.maximum(rate, self.peak * _power(s, warmup, 0.5))
            return rate

        return after


@dataclass(frozen=True)
class WarmupStableDecay(_Warmed):
    """Linear warm-up, constant peak, linear decay at the end of the run."""

    start: Rate = 0.0
    """Learning rate at s = 0; unless told otherwise, OLMo's trainer takes a tenth of the peak."""
    peak: Rate = 3e-4
    """Learning rate at the end of the warm-up."""
    end: Rate = 0.0
    """Learning rate at the end of the run."""
    warmup: Steps = "2000 steps"
    """Length of the rise."""
    decay: Steps = "10000 steps"
    """Length of the decay, counted back from the end of the run."""

    def _after_warmup(self, warmup: int, num_steps: int) -> optax.Schedule:
        decay_start = self._decay_start(num_steps)
        return optax.join_schedules(
            [
                optax.constant_schedule(self.peak),
                _line(self.peak, self.end, num_steps - decay_start),
            ],
            [decay_start - warmup],
        )

    def phases(self, num_steps: int) -> Phases:
        """(name, first step) of each phase of the run."""
        warmup, decay_start = whole_steps(self.warmup), self._decay_start(num_steps)
        return _inside([("warmup", 0), ("stable", warmup), ("decay", decay_start)], num_steps)

    def _decay_start(self, num_steps: int) -> int:
        return max(whole_steps(self.warmup), num_steps - whole_steps(self.decay))


@dataclass(frozen=True)
class InverseSqrt(_Warmed):
    """Linear warm-up, then down as a power of the step, the root by default; it has no horizon."""

    start: Rate = 0.0
    """Learning rate at s = 0; unless told otherwise, OLMo's trainer takes a tenth of the peak."""
    peak: Rate = 3e-4
    """Learning rate at the end of the warm-up."""
    warmup: Steps = "2000 steps"
    """Length of the rise."""
    end: Rate = 0.0
    """What the learning rate falls towards."""
    exponent: Annotated[float, Between(0, 100)] = 0.5
    """end + (peak - end) * (warmup / s)^exponent; 0.51 is OLMo-core's PowerLR."""

    def _after_warmup(self, warmup: int, num_steps: int) -> optax.Schedule:
        del num_steps
        return lambda s: self.end + (self.peak - self.end) * _power(s, warmup, self.exponent)


@dataclass(frozen=True)
class Constant(_Warmed):
    """A linear warm-up to a constant learning rate, or the constant alone."""

    start: Rate = 0.0
    """Learning rate at s = 0; unless told otherwise, OLMo's trainer takes a tenth of the peak."""
    peak: Rate = 3e-4
    """Learning rate at the end of the warm-up."""
    warmup: Steps = 0
    """Length of the rise."""

    def _after_warmup(self, warmup: int, num_steps: int) -> optax.Schedule:
        del warmup, num_steps
        return optax.constant_schedule(self.peak)

    def phases(self, num_steps: int) -> Phases:
        """(name, first step) of each phase of the run."""
        return _inside([("warmup", 0), ("stable", whole_steps(self.warmup))], num_steps)


Plain = Triangular | WarmupCosine | WarmupStableDecay | InverseSqrt | Constant
"""The schedules that hold no other."""


@dataclass(frozen=True)
class LinearTail:
    """Another schedule whose last steps go down linearly from where it then stands.

    OLMo-core's CosWithWarmupAndLinearDecay and PowerLR end so.
    """

    inner: Plain = WarmupCosine()
    """The schedule until then."""
    length: Steps = "1000 steps"
    """Length of the descent, counted back from the end of the run."""
    end: Rate = 0.0
    """Learning rate at the end of the run."""

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        return self.inner.peak

    def build(self, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of s."""
        inner, start = self.inner.build(num_steps), self._start(num_steps)
        tail = _line(inner(start), self.end, num_steps - start)
        return optax.join_schedules([inner, tail], [start])

    def phases(self, num_steps: int) -> Phases:
        """(name, first step) of each phase of the run."""
        start = self._start(num_steps)
        before = [phase for phase in self.inner.phases(num_steps) if phase[1] < start]
        return _inside([*before, ("tail", start)], num_steps)

    def _start(self, num_steps: int) -> int:
        return max(num_steps - whole_steps(self.length), 0)


@dataclass(frozen=True)
class BoltOnWarmup:
    """Another schedule with a second warm-up into it: zero, a linear rise, then the other.

    OLMo's trainer does so when it goes on with the weights of a checkpoint and fresh moments.
    """

    inner: Plain | LinearTail = WarmupCosine()
    """The schedule that the rise meets."""
    start: Steps = 0
    """Where the rise begins: the step of the checkpoint."""
    length: Steps = "1000 steps"
    """Length of the rise."""

    @property
    def peak(self) -> float:
        """The highest learning rate of the schedule inside."""
        return self.inner.peak

    def build(self, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of s."""
        inner, start, length = self.inner.build(num_steps), *self._seams()
        return optax.join_schedules(
            [
                optax.constant_schedule(0.0),
                _line(0.0, inner(start + length), length),
                lambda s: inner(s + start + length),
            ],
            [start, start + length],
        )

    def phases(self, num_steps: int) -> Phases:
        """(name, first step) of each phase of the run."""
        start, length = self._seams()
        end = start + length
        later = self.inner.phases(num_steps)
        current = [name for name, at in later if at <= end][-1:]
        after = [(name, end) for name in current] + [(name, at) for name, at in later if at > end]
        return _inside([("zero", 0), ("warmup", start), *after], num_steps)

    def _seams(self) -> tuple[int, int]:
        return whole_steps(self.start), whole_steps(self.length)


Schedule = Plain | LinearTail | BoltOnWarmup


def _horizon(horizon: int | str | None, num_steps: int) -> int:
    return num_steps if horizon is None else whole_steps(horizon)


def _line(start: Any, end: Any, length: int) -> optax.Schedule:
    """A straight line from exactly `start` at 0 to exactly `end` at `length`, and `end` after it.

    What is left of the way is counted in whole steps. Optax subtracts s / length from 1, which
    compilers round, so that its lines to zero end above it or below.
    """
    length = max(length, 1)

    def rate(s):
        left = jnp.clip(length - s, 0, length) / length
        return jnp.where(s > 0, end + (start - end) * jnp.minimum(left, 1.0), start)

    return rate


def _power(s, warmup: int, exponent: float):
    """(warmup / step)^exponent at s steps after the warm-up."""
    warmup = max(warmup, 1)
    return (warmup / jnp.maximum(warmup + s, warmup)) ** exponent


def _inside(phases: Phases, num_steps: int) -> Phases:
    """Drops phases of no length and those that begin after the run."""
    ends = [start for _, start in phases[1:]] + [num_steps]
    return [p for p, end in zip(phases, ends, strict=True) if p[1] < min(end, num_steps)]
