"""Outliers: steps whose loss or gradient norm lies far above the values before, not to be taken.

The rule of OLMo-core's SkipStepOptimizer: an outlier lies more than so many sample standard
deviations above the mean of the 128 values before it. A window is a ring, so that it can live in
the state of training, and thereby in its checkpoints.
"""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp

WINDOW = 128
"""Number of values that are kept."""
MIN_ENTRIES = 63
"""Fewest values that outliers are judged by; OLMo-core wants 64 and counts the one it judges."""
NAMES = ("loss", "grad_norm")

History = dict[str, jax.Array]
"""Window of the last values: float32 [WINDOW] for each of `NAMES`, and `count`, the number of
values recorded so far, int32 []."""

Tree = TypeVar("Tree")


def empty_history() -> History:
    """Returns a window without entries."""
    values = {name: jnp.zeros(WINDOW, jnp.float32) for name in NAMES}
    return {"count": jnp.zeros((), jnp.int32), **values}


def is_outlier(history: History, metrics: Mapping[str, jax.Array], sigmas: float) -> jax.Array:
    """Returns true where the loss or the gradient norm is an outlier, a boolean [].

    It then lies above mean + sigmas * sample deviation of the window, which does not hold it yet.
    Nothing is an outlier before the window holds `MIN_ENTRIES` values.
    """
    num_entries = jnp.minimum(history["count"], WINDOW)
    holds = jnp.arange(WINDOW) < num_entries

    def is_high(name: str) -> jax.Array:
        window = history[name]
        mean = jnp.sum(window, where=holds) / num_entries
        variance = jnp.sum(jnp.square(window - mean), where=holds) / (num_entries - 1)
        return metrics[name] > mean + sigmas * jnp.sqrt(variance)

    return (num_entries >= MIN_ENTRIES) & (is_high("loss") | is_high("grad_norm"))


def record(history: History, metrics: Mapping[str, jax.Array]) -> History:
    """Returns the window with a step's values.

    An outlier's values are recorded too, so that a new level is accepted in time. Values that are
    not finite stay out: with them no mean would be a number for the next 128 steps.
    """
    place = history["count"] % WINDOW
    new: History = {name: history[name].at[place].set(metrics[name]) for name in NAMES}
    new["count"] = history["count"] + 1
    return select(all_finite(metrics), new, history)


def all_finite(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """Returns true where the loss and the gradient norm are finite, a boolean []."""
    return jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])


def select(condition: jax.Array, yes: Tree, no: Tree) -> Tree:
    """Returns one of two trees of the same structure, chosen by a scalar on the device."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
