"""Learning-rate schedules: typed objects composed with `optax.join_schedules`.

`build(num_steps)` gives a function of s, the number of the update counted from 1 as OLMo counts
it: the first update of a run uses s = 1, the last s = num_steps. A warm-up longer than the run is
legal: the run then ends inside it.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import optax

from jaxpretrain.config.durations import Steps, whole_steps


@dataclass(frozen=True)
class Triangular:
    """OLMo-7B's schedule: linear up to the peak, an optional plateau, linear down to the end."""

    start: float = 3e-5
    """Learning rate at s = 0."""
    peak: float = 3e-4
    """Learning rate at the end of the warm-up."""
    end: float = 3e-5
    """Learning rate at the end of the run."""
    warmup: Steps = "5000 steps"
    """Length of the rise."""
    plateau: Steps = 0
    """How long the peak is held."""

    def build(self, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of s."""
        warmup, plateau = whole_steps(self.warmup), whole_steps(self.plateau)
        down = max(num_steps - warmup - plateau, 1)
        return optax.join_schedules(
            [
                optax.linear_schedule(self.start, self.peak, warmup),
                optax.constant_schedule(self.peak),
                optax.linear_schedule(self.peak, self.end, down),
            ],
            [warmup, warmup + plateau],
        )

    def phases(self, num_steps: int) -> list[tuple[str, int]]:
        """(name, first step) of each phase, for logs and reports."""
        warmup, plateau = whole_steps(self.warmup), whole_steps(self.plateau)
        return _inside([("warmup", 0), ("plateau", warmup), ("decay", warmup + plateau)], num_steps)


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine down to the end."""

    start: float = 0.0
    """Learning rate at s = 0."""
    peak: float = 3e-4
    """Learning rate at the end of the warm-up."""
    end: float = 3e-5
    """Learning rate at the end of the cosine and after it."""
    warmup: Steps = "2000 steps"
    """Length of the rise."""
    horizon: Steps | None = None
    """Where the cosine ends, counted from the start of the run; none: where the run ends. OLMo 2
    planned 5e12 tokens and stopped before."""

    def build(self, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of s."""
        warmup = whole_steps(self.warmup)
        horizon = num_steps if self.horizon is None else whole_steps(self.horizon)
        down = max(horizon - warmup, 1)

        def cosine(s):
            done = jnp.clip(s / down, 0.0, 1.0)
            return self.end + (self.peak - self.end) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

        return optax.join_schedules(
            [optax.linear_schedule(self.start, self.peak, warmup), cosine], [warmup]
        )

    def phases(self, num_steps: int) -> list[tuple[str, int]]:
        """(name, first step) of each phase."""
        return _inside([("warmup", 0), ("decay", whole_steps(self.warmup))], num_steps)


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, constant peak, linear decay at the end of the run."""

    start: float = 0.0
    """Learning rate at s = 0."""
    peak: float = 3e-4
    """Learning rate between warm-up and decay."""
    end: float = 0.0
    """Learning rate at the end of the run."""
    warmup: Steps = "2000 steps"
    """Length of the rise."""
    decay: Steps = "10000 steps"
    """Length of the decay, counted back from the end of the run."""

    def build(self, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of s."""
        warmup, decay_start = self._seams(num_steps)
        return optax.join_schedules(
            [
                optax.linear_schedule(self.start, self.peak, warmup),
                optax.constant_schedule(self.peak),
                optax.linear_schedule(self.peak, self.end, max(num_steps - decay_start, 1)),
            ],
            [warmup, decay_start],
        )

    def phases(self, num_steps: int) -> list[tuple[str, int]]:
        """(name, first step) of each phase."""
        warmup, decay_start = self._seams(num_steps)
        return _inside([("warmup", 0), ("stable", warmup), ("decay", decay_start)], num_steps)

    def _seams(self, num_steps: int) -> tuple[int, int]:
        warmup = whole_steps(self.warmup)
        return warmup, max(warmup, num_steps - whole_steps(self.decay))


@dataclass(frozen=True)
class InverseSqrt:
    """Linear warm-up, then peak * sqrt(warmup / s)."""

    start: float = 0.0
    """Learning rate at s = 0."""
    peak: float = 3e-4
    """Learning rate at the end of the warm-up."""
    warmup: Steps = "2000 steps"
    """Length of the rise."""

    def build(self, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of s."""
        del num_steps  # it does not know where the run ends
        warmup = max(whole_steps(self.warmup), 1)

        def decay(s):
            return self.peak * jnp.sqrt(warmup / jnp.maximum(warmup + s, warmup))

        return optax.join_schedules(
            [optax.linear_schedule(self.start, self.peak, warmup), decay], [warmup]
        )

    def phases(self, num_steps: int) -> list[tuple[str, int]]:
        """(name, first step) of each phase."""
        return _inside([("warmup", 0), ("decay", whole_steps(self.warmup))], num_steps)


@dataclass(frozen=True)
class Constant:
    """A linear warm-up to a constant learning rate, or the constant alone."""

    start: float = 0.0
    """Learning rate at s = 0."""
    peak: float = 3e-4
    """Learning rate after the warm-up."""
    warmup: Steps = 0
    """Length of the rise."""

    def build(self, num_steps: int) -> optax.Schedule:
        """Learning rate as a function of s."""
        del num_steps
        warmup = whole_steps(self.warmup)
        return optax.join_schedules(
            [
                optax.linear_schedule(self.start, self.peak, warmup),
                optax.constant_schedule(self.peak),
            ],
            [warmup],
        )

    def phases(self, num_steps: int) -> list[tuple[str, int]]:
        """(name, first step) of each phase."""
        return _inside([("warmup", 0), ("stable", whole_steps(self.warmup))], num_steps)


Schedule = Triangular | WarmupCosine | WarmupStableDecay | InverseSqrt | Constant


def _inside(phases: list[tuple[str, int]], num_steps: int) -> list[tuple[str, int]]:
    """Drops phases of no length and those that begin after the run."""
    ends = [start for _, start in phases[1:]] + [num_steps]
    return [p for p, end in zip(phases, ends, strict=True) if p[1] < min(end, num_steps)]
