"""Learning-rate schedules: named segments, joined by `optax.join_schedules`.

`build(num_steps)` gives a function of s, the number of the update counted from 1 as OLMo counts
it: the first update of a run uses s = 1, the last s = num_steps. A warm-up longer than the run is
legal: the run then ends inside it.

OLMo can count its schedules in tokens, those of the batch at hand included: s times the tokens of
a batch. Here a length in tokens becomes steps once, rounded up.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.config.durations import Steps, whole_steps
from jaxpretrain.config.ranges import Between, Positive

Rate = Annotated[float, Between(0, 1000)]
"""The type of a field that holds a learning rate."""

Phases = list[tuple[str, int]]
"""Names and first steps of the phases, in order, for logs and reports."""


class Segment(NamedTuple):
    """A part of a schedule, which lasts until the next one begins."""

    name: str
    first: int  # step at which it begins
    rate: optax.Schedule  # as a function of s


class _Segmented:
    """A schedule made of segments, which give the learning rate as well as the phases."""

    def segments(self, num_steps: int) -> list[Segment]:
        """Returns the segments in order; the first begins at 0, the last has no end."""
        raise NotImplementedError

    def build(self, num_steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of s."""
        segments = self.segments(num_steps)
        boundaries = [segment.first for segment in segments[1:]]
        return optax.join_schedules([segment.rate for segment in segments], boundaries)

    def phases(self, num_steps: int) -> Phases:
        """Returns the name and the first step of each segment that the run reaches."""
        segments = self.segments(num_steps)
        ends = [segment.first for segment in segments[1:]] + [num_steps]
        return [
            (segment.name, segment.first)
            for segment, end in zip(segments, ends, strict=True)
            if segment.first < min(end, num_steps)
        ]


@dataclass(frozen=True, kw_only=True)
class _Warmed(_Segmented):
    """A schedule that begins with a linear rise; each class adds the segments after it."""

    start: Rate = 0.0
    """Learning rate at s = 0; unless told otherwise, OLMo's trainer takes a tenth of the peak."""
    peak: Rate = 3e-4
    """Learning rate at the end of the warm-up."""
    warmup: Steps = "2000 steps"
    """Length of the rise."""

    def segments(self, num_steps: int) -> list[Segment]:
        """Returns the rise and what comes after it."""
        warmup = whole_steps(self.warmup)
        rise = Segment("warmup", 0, _line(self.start, self.peak, warmup))
        return [rise, *self._after(warmup, num_steps)]

    def _after(self, warmup: int, num_steps: int) -> list[Segment]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Triangular(_Warmed):
    """OLMo-7B's schedule: linear up to the peak, linear down to the end."""

    start: Rate = 3e-5
    """Learning rate at s = 0."""
    end: Rate = 3e-5
    """Learning rate at the horizon and after it."""
    warmup: Steps = "5000 steps"
    """Length of the rise."""
    horizon: Annotated[Steps, Positive] | None = None
    """Step at which the descent ends, counted from the start of the run; none: the last step."""

    def _after(self, warmup: int, num_steps: int) -> list[Segment]:
        length = whole_steps(self.horizon or num_steps) - warmup
        return [Segment("decay", warmup, _line(self.peak, self.end, length))]


CosineShape = Literal["cosine", "cosine_linear", "cosine_or_inverse_sqrt", "second_half"]


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(_Warmed):
    """Linear warm-up, then down to the end along a cosine."""

    end: Rate = 3e-5
    """Learning rate at the horizon and after it."""
    horizon: Annotated[Steps, Positive] | None = None
    """Step at which the cosine ends, counted from the start of the run; none: the last step. OLMo 2
    planned 5e12 tokens and stopped before."""
    shape: CosineShape = "cosine"
    """With p from 0 at the peak to 1 at the horizon, the part of peak - end that is left:
    cosine: (1 + cos(pi p)) / 2.
    cosine_linear: that times 1 - p (OLMo's cosine_linear_envelope).
    cosine_or_inverse_sqrt: cosine, or peak * sqrt(warmup / s) where that is higher (OLMo's
    max_scheduler).
    second_half: 1 - sin(pi p / 2), a cosine from its middle on (OLMo-core's HalfCosWithWarmup,
    whose learning rate is the whole cosine's peak; here `peak` is the one that is reached)."""

    def _after(self, warmup: int, num_steps: int) -> list[Segment]:
        length = max(whole_steps(self.horizon or num_steps) - warmup, 1)

        def rate(t):
            p = jnp.clip(t / length, 0.0, 1.0)
            if self.shape == "second_half":
                left = 1.0 - jnp.sin(0.5 * jnp.pi * p)
            else:
                left = 0.5 * (1.0 + jnp.cos(jnp.pi * p))
            if self.shape == "cosine_linear":
                left *= 1.0 - p
            left = jnp.where(t < length, jnp.maximum(left, 0.0), 0.0)
            cosine = self.end + (self.peak - self.end) * left
            if self.shape == "cosine_or_inverse_sqrt":
                return jnp.maximum(cosine, self.peak * _power(t, warmup, 0.5))
            return cosine

        return [Segment("decay", warmup, rate)]


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(_Warmed):
    """Linear warm-up, constant peak, linear decay at the end of the run."""

    end: Rate = 0.0
    """Learning rate at the end of the run."""
    decay: Steps = "10000 steps"
    """Length of the decay, counted back from the end of the run."""

    def _after(self, warmup: int, num_steps: int) -> list[Segment]:
        start = max(warmup, num_steps - whole_steps(self.decay))
        return [
            Segment("stable", warmup, optax.constant_schedule(self.peak)),
            Segment("decay", start, _line(self.peak, self.end, num_steps - start)),
        ]


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(_Warmed):
    """Linear warm-up, then down as a power of the step, the root by default; it has no horizon."""

    end: Rate = 0.0
    """Learning rate that the schedule falls towards."""
    exponent: Annotated[float, Between(0, 100)] = 0.5
    """Exponent in end + (peak - end) * (warmup / s)^exponent; 0.51 is OLMo-core's PowerLR."""

    def _after(self, warmup: int, num_steps: int) -> list[Segment]:
        def rate(t):
            return self.end + (self.peak - self.end) * _power(t, warmup, self.exponent)

        return [Segment("decay", warmup, rate)]


@dataclass(frozen=True, kw_only=True)
class Constant(_Warmed):
    """A linear warm-up to a constant learning rate, or the constant alone."""

    warmup: Steps = 0
    """Length of the rise."""

    def _after(self, warmup: int, num_steps: int) -> list[Segment]:
        return [Segment("stable", warmup, optax.constant_schedule(self.peak))]


Plain = Triangular | WarmupCosine | WarmupStableDecay | InverseSqrt | Constant
"""The schedules that hold no other."""


@dataclass(frozen=True)
class LinearTail(_Segmented):
    """Another schedule that ends in a straight line, as OLMo-core's CosWithWarmupAndLinearDecay."""

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

    def segments(self, num_steps: int) -> list[Segment]:
        """Returns the segments of the other schedule that begin before the tail, and the tail."""
        start = max(num_steps - whole_steps(self.length), 0)
        before = [part for part in self.inner.segments(num_steps) if part.first < start]
        top = self.inner.build(num_steps)(start)
        return [*before, Segment("tail", start, _line(top, self.end, num_steps - start))]


@dataclass(frozen=True)
class BoltOnWarmup(_Segmented):
    """Another schedule with a second warm-up into it: zero, a linear rise, then the other.

    OLMo's trainer does so when it goes on with the weights of a checkpoint and fresh moments.
    """

    inner: Plain | LinearTail = WarmupCosine()
    """The schedule that the rise meets."""
    from_step: Steps = 0
    """Step at which the rise begins: that of the checkpoint."""
    length: Steps = "1000 steps"
    """Length of the rise."""

    @property
    def peak(self) -> float:
        """The highest learning rate of the schedule inside."""
        return self.inner.peak

    def segments(self, num_steps: int) -> list[Segment]:
        """Returns zero, the rise, and the segments of the other schedule from there on."""
        start, length = whole_steps(self.from_step), whole_steps(self.length)
        end = start + length
        top = self.inner.build(num_steps)(end)
        return [
            Segment("zero", 0, optax.constant_schedule(0.0)),
            Segment("warmup", start, _line(0.0, top, length)),
            *(_begun_by(end, segment) for segment in self.inner.segments(num_steps)),
        ]


Schedule = Plain | LinearTail | BoltOnWarmup


def _begun_by(step: int, segment: Segment) -> Segment:
    """Returns what is left of a segment from a step on, nothing where it is over by then."""
    late = max(step - segment.first, 0)
    return Segment(segment.name, segment.first + late, lambda t: segment.rate(t + late))


def _line(start: Any, end: Any, length: int) -> optax.Schedule:
    """Returns a straight line from exactly `start` to exactly `end`, where it stays.

    What is left is counted in whole steps: Optax subtracts t / length from 1, which compilers
    round, so that its lines to zero end above it or below.
    """
    length = max(length, 1)

    def rate(t):
        left = jnp.clip(length - t, 0, length) / length
        return jnp.where(t > 0, end + (start - end) * jnp.minimum(left, 1.0), start)

    return rate


def _power(t, warmup: int, exponent: float) -> jax.Array:
    """Returns (warmup / s)^exponent at s = warmup + t; no warm-up counts as one of a step."""
    least = max(warmup, 1)
    return (least / jnp.maximum(least + t, least)) ** exponent
