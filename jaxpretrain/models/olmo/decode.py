"""Keys and values of the positions so far, so that a text goes on without being read again.

Place p of a row holds its position p, whatever the other rows hold. What lies beyond the positions
that a row has is never seen: attention is causal, and a place is written before it is seen.

Shapes: b batch, t new positions, s places, m key/value heads, h head size, l layers of a stack.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.models import masks
from jaxpretrain.models.contract import Axes, Constrain
from jaxpretrain.models.olmo.config import DecoderConfig

_AXES: Axes = ("layers", "batch", "heads", None, None)


class Stack(NamedTuple):
    """The keys and values of the layers at one position of the pattern, in the compute dtype."""

    keys_lbmsh: jax.Array
    values_lbmsh: jax.Array

    def write(
        self, layer: jax.Array, k_btmh: jax.Array, v_btmh: jax.Array, places_bt: jax.Array
    ) -> "Stack":
        """Returns the stack with new keys and values of one layer at these places."""
        rows_b1 = jnp.arange(places_bt.shape[0])[:, None]
        at = (layer, rows_b1, slice(None), places_bt)
        return Stack(self.keys_lbmsh.at[at].set(k_btmh), self.values_lbmsh.at[at].set(v_btmh))


class Cache(NamedTuple):
    """The tokens, keys and values of the positions so far."""

    tokens_bs: jax.Array
    """The token ids, from which documents follow."""
    stacks: dict[str, Stack]
    """The keys and values, by the position in the pattern of layers."""

    def write_tokens(self, tokens_bt: jax.Array, places_bt: jax.Array) -> "Cache":
        """Returns the cache with new tokens at these places."""
        rows_b1 = jnp.arange(places_bt.shape[0])[:, None]
        return self._replace(tokens_bs=self.tokens_bs.at[rows_b1, places_bt].set(tokens_bt))

    def visible(
        self, places_bt: jax.Array, window: int | None, document_end: int | None
    ) -> jax.Array:
        """Returns the places that these places see, booleans [b, t, s]."""
        in_order_bts = masks.in_order(places_bt, jnp.arange(self.tokens_bs.shape[1])[None], window)
        if document_end is None:
            return in_order_bts
        documents_bs = masks.documents(self.tokens_bs, document_end)
        documents_bt = jnp.take_along_axis(documents_bs, places_bt, axis=1)
        return in_order_bts & masks.same(documents_bt, documents_bs)


def empty_cache(config: DecoderConfig, batch_size: int, length: int, constrain: Constrain) -> Cache:
    """Returns a cache with room for `length` positions of each row."""
    pattern, num_kv_heads = len(config.windows), config.num_kv_heads or config.num_heads
    shape = (config.num_layers // pattern, batch_size, num_kv_heads, length, config.head_dim)

    def zeros() -> jax.Array:
        return constrain(jnp.zeros(shape, config.dtype), _AXES)

    tokens_bs = constrain(jnp.zeros((batch_size, length), jnp.int32), ("batch", None))
    return Cache(tokens_bs, {str(p): Stack(zeros(), zeros()) for p in range(pattern)})
