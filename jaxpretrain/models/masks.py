"""Which keys a query sees: the causal order, a sliding window, and the borders of documents.

Shapes: b batch, t query positions, s key positions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mask(NamedTuple):
    """A query sees the keys that all of these let through."""

    causal: bool
    """Only keys at or before the query."""
    window: int | None
    """Only so many positions up to the query, itself included."""
    documents_bt: jax.Array | None
    """Only keys whose document has the query's number; int32."""

    def visible(self, queries: slice, keys: slice) -> jax.Array | None:
        """[b or 1, t, s] booleans for ranges of positions; None where nothing is hidden."""
        in_order_bts = self._in_order(queries, keys) if self.causal else None
        if self.documents_bt is None:
            return in_order_bts
        same_bts = same_document(self.documents_bt[:, queries], self.documents_bt[:, keys])
        return same_bts if in_order_bts is None else in_order_bts & same_bts

    def _in_order(self, queries: slice, keys: slice) -> jax.Array:
        queries_t1 = jnp.arange(queries.start, queries.stop)[:, None]
        distance_ts = queries_t1 - jnp.arange(keys.start, keys.stop)[None, :]
        visible_ts = distance_ts >= 0
        if self.window is not None:
            visible_ts &= distance_ts < self.window
        return visible_ts[None]


def same_document(queries_bt: jax.Array, keys_bs: jax.Array) -> jax.Array:
    """[b, t, s] booleans, from the numbers of the documents."""
    return queries_bt[:, :, None] == keys_bs[:, None, :]


def documents(tokens_bt: jax.Array, end: int) -> jax.Array:
    """Numbers the documents of token sequences, int32 [b, t]; `end` closes its own document."""
    is_end_bt = (tokens_bt == end).astype(jnp.int32)
    return jnp.cumsum(is_end_bt, axis=1) - is_end_bt


def num_visible_pairs(length: int, window: int | None, causal: bool) -> float:
    """Pairs (query, key) of one sequence, document borders aside."""
    reach = length if window is None else min(window, length)
    if not causal:
        return float(length * reach)
    return reach * (reach + 1) / 2 + (length - reach) * reach
