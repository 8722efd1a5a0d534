"""Scores of single tokens: the head is applied once to each place after which tokens are scored.

Shapes: b batch, t positions, g groups of b / g rows (as the batch is divided over devices), n
places of each group, m tokens that are scored at them, c places of a chunk, d model width, v
vocabulary.
"""

import jax
import jax.numpy as jnp

from jaxpretrain.models.contract import Branches, LanguageModel, Params

_LOGITS_AT_ONCE = 512
"""Places of a group whose logits exist at once."""


def next_token_scores(
    model: LanguageModel,
    params: Params,
    tokens_bt: jax.Array,
    branches: Branches | None,
    places_gn: jax.Array,
    after_gm: jax.Array,
    targets_gm: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probability of each target, in nats, and true where no token is likelier.

    Both are [g, m]. A place is row within the group * t + index; `after` holds the number of the
    place that a target would follow.
    """
    x_btd = model.hidden(params, tokens_bt, branches)
    num_groups, num_places = places_gn.shape
    x_ged = x_btd.reshape(num_groups, -1, x_btd.shape[-1])  # e: everywhere in a group
    x_gnd = jnp.take_along_axis(x_ged, places_gn[..., None], axis=1)
    kernel_dv = model.output_kernel(params)
    log_prob_gm = jnp.zeros(targets_gm.shape, jnp.float32)
    likeliest_gm = jnp.zeros(targets_gm.shape, bool)
    for start in range(0, num_places, _LOGITS_AT_ONCE):
        x_gcd = x_gnd[:, start : start + _LOGITS_AT_ONCE]
        logits_gcv = jnp.einsum("gcd,dv->gcv", x_gcd, kernel_dv, preferred_element_type=jnp.float32)
        is_here_gm = (after_gm >= start) & (after_gm < start + x_gcd.shape[1])
        here_gm = jnp.where(is_here_gm, after_gm - start, 0)
        at_gm = jnp.arange(num_groups)[:, None], here_gm
        target_gm = logits_gcv[*at_gm, targets_gm]
        log_norm_gm = jax.nn.logsumexp(logits_gcv, axis=-1)[at_gm]
        peak_gm = jnp.max(logits_gcv, axis=-1)[at_gm]
        log_prob_gm = jnp.where(is_here_gm, target_gm - log_norm_gm, log_prob_gm)
        likeliest_gm = jnp.where(is_here_gm, target_gm >= peak_gm, likeliest_gm)
    return log_prob_gm, likeliest_gm
