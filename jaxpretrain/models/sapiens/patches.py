"""Images as sequences of patches: random orders that say which of them are seen, and positions.

Shapes: b batch, l patches of an image, k patches that are taken of them, p values of a patch
(row, column, channel, the channel fastest).

Three public layouts of fixed positions differ: Sapiens and mmpretrain put the row first, the
original MAE the column, big_vision orders and spaces its waves otherwise.
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

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
"""Mean and standard deviation of ImageNet's red, green and blue, of 255."""

_EPSILON = 1e-6  # added to a patch's variance


def normalize(images_bhwc: jax.Array) -> jax.Array:
    """Returns uint8 RGB images as float32 with mean 0 and standard deviation 1 on ImageNet."""
    return (images_bhwc.astype(jnp.float32) - MEAN[None, None, None]) / STD[None, None, None]


def to_unit(normalized_bhwc: jax.Array) -> jax.Array:
    """Returns normalised images as float32 in [0, 1], for pictures."""
    pixels = normalized_bhwc * STD[None, None, None] + MEAN[None, None, None]
    return jnp.clip(pixels / 255.0, 0.0, 1.0)


def patchify(images_bhwc: jax.Array, size: int) -> jax.Array:
    """Returns the patches [b, l, p] of images, row by row."""
    b, h, w, c = images_bhwc.shape
    grid = images_bhwc.reshape(b, h // size, size, w // size, size, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)


def unpatchify(patches_blp: jax.Array, size: int, width: int) -> jax.Array:
    """Returns the images of `width` pixels that these patches make up."""
    b, _, p = patches_blp.shape
    grid = patches_blp.reshape(b, -1, width // size, size, size, p // size**2)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, width, p // size**2)


def patch_moments(patches_blp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (mean, deviation) of each patch, [b, l, 1]; the variance is unbiased, plus 1e-6."""
    mean = jnp.mean(patches_blp, axis=-1, keepdims=True)
    variance = jnp.var(patches_blp, axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + _EPSILON)


def draw_orders(rng: jax.Array, rows_b: jax.Array, num_patches: int) -> jax.Array:
    """Returns orders of patches, int32 [b, l], each drawn by `rng` and its row alone."""

    def draw(row: jax.Array) -> jax.Array:
        return jnp.argsort(jax.random.uniform(jax.random.fold_in(rng, row), (num_patches,)))

    return jax.vmap(draw)(rows_b)


def take(patches_blp: jax.Array, indices_bk: jax.Array) -> jax.Array:
    """Returns the patches at `indices_bk` of each example, [b, k, p]."""
    return jnp.take_along_axis(patches_blp, indices_bk[:, :, None], axis=1)


def put(patches_blp: jax.Array, indices_bk: jax.Array, values_bkp: jax.Array) -> jax.Array:
    """Returns `patches_blp` with other values at `indices_bk`."""
    return jax.vmap(lambda patches, at, values: patches.at[at].set(values))(
        patches_blp, indices_bk, values_bkp
    )


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
