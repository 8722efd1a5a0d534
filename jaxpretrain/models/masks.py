"""Which keys a query sees: the causal order, a sliding window, the borders of documents, branches.

Shapes: b batch, t query positions, s key positions.
"""

from functools import reduce
from operator import and_
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.models.contract import Branches


class Mask(NamedTuple):
    """A query sees the keys that all of these let through."""

    causal: bool
    """Only keys at or before the query."""
    window: int | None
    """Only so many positions up to the query, itself included."""
    documents_bt: jax.Array | None
    """Only keys whose document has the query's number; int32."""
    branches: Branches | None = None
    """Only keys of the query's stem and branch; order and window go by their positions."""

    def visible(self, queries: slice, keys: slice) -> jax.Array | None:
        """[b or 1, t, s] booleans for ranges of positions; None where nothing is hidden."""
        conditions = []
        if self.causal:
            conditions.append(self._in_order(queries, keys))
        if self.documents_bt is not None:
            conditions.append(same(self.documents_bt[:, queries], self.documents_bt[:, keys]))
        if self.branches is not None:
            conditions.append(_on_one_path(self.branches, queries, keys))
        return reduce(and_, conditions) if conditions else None

    def _in_order(self, queries: slice, keys: slice) -> jax.Array:
        if self.branches is None:
            queries_bt = jnp.arange(queries.start, queries.stop)[None]
            keys_bs = jnp.arange(keys.start, keys.stop)[None]
        else:
            positions_bt = self.branches.positions_bt
            queries_bt, keys_bs = positions_bt[:, queries], positions_bt[:, keys]
        return in_order(queries_bt, keys_bs, self.window)


def in_order(queries_bt: jax.Array, keys_bs: jax.Array, window: int | None) -> jax.Array:
    """[b, t, s] booleans, from positions: keys at or before the query, and inside its window."""
    distance_bts = queries_bt[:, :, None] - keys_bs[:, None, :]
    visible_bts = distance_bts >= 0
    return visible_bts if window is None else visible_bts & (distance_bts < window)


def same(queries_bt: jax.Array, keys_bs: jax.Array) -> jax.Array:
    """[b, t, s] booleans: keys that have the query's number."""
    return queries_bt[:, :, None] == keys_bs[:, None, :]


def _on_one_path(branches: Branches, queries: slice, keys: slice) -> jax.Array:
    stems_bt, branches_bt, _ = branches
    in_stem_b1s = branches_bt[:, None, keys] == 0
    same_branch_bts = same(branches_bt[:, queries], branches_bt[:, keys])
    return same(stems_bt[:, queries], stems_bt[:, keys]) & (in_stem_b1s | same_branch_bts)


def documents(tokens_bt: jax.Array, end: int, branches: Branches | None = None) -> jax.Array:
    """Numbers the documents of token sequences, int32 [b, t]; `end` closes its own document.

    A branch goes on in the document that its stem leaves off in.
    """
    is_end_bt = (tokens_bt == end).astype(jnp.int32)
    before_bt = jnp.cumsum(is_end_bt, axis=1) - is_end_bt
    if branches is None:
        return before_bt
    # On its path are the ends before the fork and those since the branch began.
    is_branch_bt = branches.branches_bt != 0
    begins_bt = _changes(branches.stems_bt) | _changes(branches.branches_bt)
    begin_bt = jax.lax.cummax(jnp.where(begins_bt, before_bt, 0), axis=1)
    forks_bt = is_branch_bt & _changes(is_branch_bt)
    fork_bt = jax.lax.cummax(jnp.where(forks_bt, before_bt, 0), axis=1)
    return jnp.where(is_branch_bt, fork_bt + before_bt - begin_bt, before_bt)


def _changes(numbers_bt: jax.Array) -> jax.Array:
    """Where a number is not that of the place before."""
    return jnp.pad(numbers_bt[:, 1:] != numbers_bt[:, :-1], ((0, 0), (1, 0)))


def num_visible_pairs(length: int, window: int | None, causal: bool) -> float:
    """Pairs (query, key) of one sequence, document borders aside."""
    reach = length if window is None else min(window, length)
    if not causal:
        return float(length * reach)
    return reach * (reach + 1) / 2 + (length - reach) * reach
