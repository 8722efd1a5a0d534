"""Scores of single tokens: the head is applied only where a token is scored.

Shapes: b batch, t positions, g groups of b / g rows (as the batch is divided over devices), n
places of each group where a token is scored, c of a chunk of them, d model width, v vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpretrain.models.contract import LanguageModel

_LOGITS_AT_ONCE = 512
"""Places of a group whose logits exist at once."""


def next_token_scores(
    model: LanguageModel,
    params: Any,
    tokens_bt: jax.Array,
    places_gn: jax.Array,
    targets_gn: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The log-probability of each target, in nats, and whether no token is likelier; both [g, n].

    A place is row within the group * t + position; the target is what would follow there.
    """
    x_btd = model.hidden(params, tokens_bt)
    num_groups, num_places = places_gn.shape
    x_gmd = x_btd.reshape(num_groups, -1, x_btd.shape[-1])  # m: all positions of a group
    x_gnd = jnp.take_along_axis(x_gmd, places_gn[..., None], axis=1)
    kernel_dv = model.output_kernel(params)

    def score(x_gcd: jax.Array, targets_gc: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_gcv = jnp.einsum("gcd,dv->gcv", x_gcd, kernel_dv, preferred_element_type=jnp.float32)
        target_gc = jnp.take_along_axis(logits_gcv, targets_gc[..., None], axis=-1)[..., 0]
        log_prob_gc = target_gc - jax.nn.logsumexp(logits_gcv, axis=-1)
        return log_prob_gc, target_gc >= jnp.max(logits_gcv, axis=-1)

    scores = [
        score(x_gnd[:, i : i + _LOGITS_AT_ONCE], targets_gn[:, i : i + _LOGITS_AT_ONCE])
        for i in range(0, num_places, _LOGITS_AT_ONCE)
    ]
    log_probs, likeliest = zip(*scores, strict=True)
    return jnp.concatenate(log_probs, axis=1), jnp.concatenate(likeliest, axis=1)
