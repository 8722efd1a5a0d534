"""Fixed positions of image patches: sines and cosines as in Sapiens, or a checkpoint's own table.

Three public layouts differ: Sapiens and mmpretrain put the row first, the original MAE the column,
big_vision orders and spaces its waves otherwise. What a checkpoint was trained with is its own.
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.models.contract import Params

PositionsKind = Literal["sincos", "stored"]
"""The tables of positions: one that is computed, or one of a checkpoint."""


def sincos_positions(num_rows: int, num_columns: int, features: int) -> jax.Array:
    """Returns float32 [1 + num_rows * num_columns, features].

    First are zeros for the class token. Patches go row by row; each is [sin(row w), cos(row w),
    sin(column w), cos(column w)] with w_i = 10000^(-4 i / features), i < features / 4. `features`
    is a multiple of four.
    """
    quarter = features // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)

    def waves(num_places: int) -> np.ndarray:
        angles = np.outer(np.arange(num_places), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    # Small tables that XLA spreads out: the whole one would be megabytes of program.
    half = (num_rows, num_columns, features // 2)
    rows = jnp.broadcast_to(waves(num_rows)[:, None], half)
    columns = jnp.broadcast_to(waves(num_columns)[None], half)
    patches = jnp.concatenate([rows, columns], axis=-1).reshape(-1, features)
    return jnp.concatenate([jnp.zeros((1, features), jnp.float32), patches])


@dataclass(frozen=True)
class Positions:
    """The positions of a grid of patches, (rows, columns), in one width.

    A stored table is a parameter by its place in the tree, but not by its kind, "constant": nothing
    decays it, and no gradient reaches it.
    """

    kind: PositionsKind
    grid: tuple[int, int]
    features: int

    def init(self, rng: jax.Array) -> Params:
        """Returns {"constant" [1 + l, features]} in its box if stored, with the computed table."""
        del rng
        if self.kind == "sincos":
            return {}
        table = sincos_positions(*self.grid, self.features)
        return {"constant": nn.Partitioned(table, ("norm", "norm"))}

    def __call__(self, params: Params, patches_bk: jax.Array | None = None) -> jax.Array:
        """Returns float32 [b, 1 + k, features]: the class token's, then those of `patches_bk`.

        Without `patches_bk`, numbers from 0, it is [1, 1 + l, features], all in order.
        """
        if self.kind == "sincos":
            table = sincos_positions(*self.grid, self.features)
        else:
            table = jax.lax.stop_gradient(params["constant"])
        if patches_bk is None:
            return table[None]
        return table[jnp.pad(patches_bk + 1, ((0, 0), (1, 0)))]
