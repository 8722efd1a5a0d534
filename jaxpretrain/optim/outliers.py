"""Steps that are too bad to take: losses or gradient norms far above those of late.

The rule of OLMo-core's SkipStepOptimizer: an outlier lies more than so many sample standard
deviations above the mean of the 128 values before it. A window is a ring, so that it can live in
the state of training, and thereby in its checkpoints.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

WINDOW = 128
MIN_ENTRIES = 63  # OLMo-core wants 64 and counts the one that is judged
NAMES = ("loss", "grad_norm")

History = dict[str, jax.Array]
"""`count` int32 [], values recorded so far; float32 [WINDOW] for each of `NAMES`."""


def empty_history() -> History:
    """A window without entries."""
    values = {name: jnp.zeros(WINDOW, jnp.float32) for name in NAMES}
    return {"count": jnp.zeros((), jnp.int32), **values}


def is_outlier(history: History, metrics: Mapping[str, jax.Array], sigmas: float) -> jax.Array:
    """Whether the loss or the gradient norm > mean + sigmas * sample deviation of the window.

    The values themselves are not in the window yet. Never before it holds `MIN_ENTRIES`.
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
    """The window with a step's values, an outlier's too: so a new level is accepted in time.

    Values that are not finite stay out: with them no mean would be one for the next 128 steps.
    """
    place = history["count"] % WINDOW
    new: History = {name: history[name].at[place].set(metrics[name]) for name in NAMES}
    new["count"] = history["count"] + 1
    return select(all_finite(metrics), new, history)


def all_finite(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """Whether the loss and the gradient norm are numbers."""
    return jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])


def select(condition: jax.Array, yes: Any, no: Any) -> Any:
    """One of two equal trees, by a scalar on device."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
