"""The names of arrays in a checkpoint, their descriptions, and their checksums."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def to_named(tree: object) -> dict[str, Any]:
    """Returns the leaves of a tree of dicts, named tuples and dataclasses as {"a/b/c": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def from_named(like: object, named: Mapping[str, object]) -> Any:
    """Returns the tree `like` with its leaves replaced by the arrays of those names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: named[_name(path)], like)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def kind(x: Any) -> dict[str, object]:
    """Returns the shape and the dtype of an array as they stand in a checkpoint's document."""
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


def describe(named: dict[str, jax.Array]) -> dict[str, dict[str, object]]:
    """Returns the arrays as they stand in a checkpoint's document, with their checksums."""
    sums = jax.device_get(checksums(named))
    return {name: {**kind(x), "checksum": int(sums[name])} for name, x in named.items()}


@jax.jit
def checksums(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns a wrapping uint32 sum over the bits of each array: exact, whatever the sharding."""
    return jax.tree.map(checksum, named)


def checksum(x: jax.Array) -> jax.Array:
    """Returns a wrapping uint32 sum over the bits of an array; it can be traced."""
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32), dtype=jnp.uint32)


def part_checksum(part: np.ndarray) -> int:
    """Returns the share of a part of an array in its checksum, computed on the host."""
    bits = np.ascontiguousarray(part).reshape(-1).view(f"uint{8 * part.itemsize}")
    return int(np.sum(bits, dtype=np.uint32))
