"""The keys that a query sees: causal order, sliding windows, borders of documents, branches.

Shapes: b batch, t query positions, s key positions.
"""

from functools import reduce
from operator import and_
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.models.contract import Branches


class Mask(NamedTuple):
    """The conditions that a key must meet, all of them, to be seen by a query."""

    causal: bool = True
    """True where queries see only keys at or before themselves."""
    window: int | None = None
    """The number of positions that a query sees, itself included; None: all."""
    documents_bt: jax.Array | None = None
    """The document numbers, int32, where queries see only keys of their own document."""
    branches: Branches | None = None
    """The branches, where queries see only keys of their stem and branch. Order and window then
    follow the positions of the branches."""

    def visible(self, queries: slice, keys: slice) -> jax.Array | None:
        """Returns booleans [b or 1, t, s] for ranges of positions; None where all keys are seen."""
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
    """Returns booleans [b, t, s]: true for keys at or before the query and inside its window."""
    distance_bts = queries_bt[:, :, None] - keys_bs[:, None, :]
    visible_bts = distance_bts >= 0
    return visible_bts if window is None else visible_bts & (distance_bts < window)


def same(queries_bt: jax.Array, keys_bs: jax.Array) -> jax.Array:
    """Returns booleans [b, t, s]: true for keys that have the query's number."""
    return queries_bt[:, :, None] == keys_bs[:, None, :]


def _on_one_path(branches: Branches, queries: slice, keys: slice) -> jax.Array:
    stems_bt, branches_bt, _ = branches
    in_stem_b1s = branches_bt[:, None, keys] == 0
    same_branch_bts = same(branches_bt[:, queries], branches_bt[:, keys])
    return same(stems_bt[:, queries], stems_bt[:, keys]) & (in_stem_b1s | same_branch_bts)


def documents(tokens_bt: jax.Array, end: int, branches: Branches | None = None) -> jax.Array:
    """Returns documents, int32 [b, t], that `end` closes; branches continue their stem's last."""
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
    """Returns true where a number differs from the one before it."""
    return jnp.pad(numbers_bt[:, 1:] != numbers_bt[:, :-1], ((0, 0), (1, 0)))


def num_visible_pairs(length: int, window: int | None, causal: bool) -> float:
    """Returns the pairs (query, key) of one sequence; document borders are not counted."""
    reach = length if window is None else min(window, length)
    if not causal:
        return float(length * reach)
    return reach * (reach + 1) / 2 + (length - reach) * reach
