"""The signals of a layer: its largest attention logit, and the size of its output.

They are computed from the queries and keys of a block, outside of the attention kernels. Models
return them by name, float32 [layers] from the bottom.

Shapes: b batch, t query positions, s key positions, n query heads, m key/value heads, g = n / m
query heads that share a key, h head size, d width.
"""

import jax
import jax.numpy as jnp

from jaxpretrain.models.masks import Mask

QUERY_CHUNK = 512


def seen(x_btd: jax.Array, logit: jax.Array) -> dict[str, jax.Array]:
    """Returns `attention_logit`, and `activation_rms` of the residual stream, each float32 []."""
    square = jnp.mean(jnp.square(x_btd.astype(jnp.float32)))
    return {"attention_logit": logit, "activation_rms": jnp.sqrt(square)}


def largest_logit(q_btnh: jax.Array, k_bsmh: jax.Array, mask: Mask) -> jax.Array:
    """Returns the largest logit of attention over all heads and visible pairs, float32 [].

    Queries are taken in chunks, so that all pairs never exist at once.
    """
    b, t, n, h = q_btnh.shape
    m = k_bsmh.shape[2]
    q_btmgh = q_btnh.reshape(b, t, m, n // m, h) * jnp.asarray(h**-0.5, q_btnh.dtype)
    largest = jnp.float32(-jnp.inf)
    for start in range(0, t, QUERY_CHUNK):
        queries = slice(start, min(start + QUERY_CHUNK, t))
        keys = slice(0, queries.stop if mask.causal else k_bsmh.shape[1])
        scores_bmgts = jnp.einsum(
            "btmgh,bsmh->bmgts",
            q_btmgh[:, queries],
            k_bsmh[:, keys],
            preferred_element_type=jnp.float32,
        )
        visible_bts = mask.visible(queries, keys)
        if visible_bts is not None:
            scores_bmgts = jnp.where(visible_bts[:, None, None], scores_bmgts, -jnp.inf)
        largest = jnp.maximum(largest, jnp.max(scores_bmgts))
    return largest
