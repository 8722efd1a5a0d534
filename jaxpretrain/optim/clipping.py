"""Clipping gradients by their global norm, with OLMo's warm-up of the threshold."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxpretrain.optim.norms import global_norm


class ClipWarmup(NamedTuple):
    """The state of a warm-up of the threshold."""

    count: jax.Array  # int32 [], number of updates


def clip_by_global_norm(
    max_norm: float, warmup: int = 0, warmup_factor: float = 1.0
) -> optax.GradientTransformation:
    """Returns the scaling by min(1, max_norm / (norm + 1e-6)), norm over all parameters, float32.

    The 1e-6 is torch's and so OLMo's; Optax's own clipping has none. In the updates 2 to
    warmup + 1, counted from 1, the threshold is `warmup_factor` times as high: OLMo's trainer
    clips and then looks up the threshold of the step, which so takes effect one update late.
    """

    def clip(updates: optax.Updates, threshold: ArrayLike) -> optax.Updates:
        factor = jnp.minimum(1.0, threshold / (global_norm(updates) + 1e-6))
        return jax.tree.map(lambda u: u * factor, updates)

    if not warmup:
        return optax.stateless(lambda updates, params: clip(updates, max_norm))

    def update(updates: optax.Updates, state: Any, params: object = None):
        del params
        is_raised = (state.count >= 1) & (state.count <= warmup)
        threshold = jnp.where(is_raised, warmup_factor * max_norm, max_norm)
        return clip(updates, threshold), ClipWarmup(jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformation(lambda params: ClipWarmup(jnp.zeros((), jnp.int32)), update)
