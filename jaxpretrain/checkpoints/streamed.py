"""Arrays that are written and read part by part, so that none need be in memory whole."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from jaxpretrain.checkpoints.names import kind, part_checksum


@dataclass(frozen=True)
class Streamed:
    """An array that is made part by part, so that it need not be in memory whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterable[np.ndarray]]
    """Makes the parts anew: consecutive rows of the first axis."""


def write_streamed(
    directory: Path, step: int, arrays: Mapping[str, Streamed], extra: dict[str, Any]
) -> None:
    """Writes the checkpoint `directory/<step>` with the arrays of those names, one after another.

    It reads as one that was saved. It is not atomic: `directory` must be one that nobody looks at
    before this has returned.
    """
    folder = directory.absolute() / str(step)
    found = {
        name: {**kind(array), "checksum": _write_array(folder / "state" / name, array)}
        for name, array in arrays.items()
    }
    # What Orbax wants to know of a tree, in its own words: a dict of arrays, each a Zarr folder.
    tree = {
        str((name,)): {
            "key_metadata": [{"key": name, "key_type": 2}],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
        for name in arrays
    }
    documents = {
        "_CHECKPOINT_METADATA": {},
        "state/_METADATA": {"tree_metadata": tree, "use_ocdbt": False, "use_zarr3": False},
        "meta/metadata": {**extra, "arrays": found},
    }
    for name, document in documents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))


def _write_array(folder: Path, array: Streamed) -> int:
    """Writes a Zarr array; returns its checksum, that of `checksums`."""
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "chunks": _chunks(array.shape, array.dtype.itemsize),
            "compressor": {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1},
        },
        "store_data_equal_to_fill_value": True,  # a restore takes chunks that lack for damage
    }
    store = ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
    checksum = row = 0
    for part in array.parts():
        checksum += part_checksum(part)
        end = row + (len(part) if part.ndim else 0)
        (store[row:end] if part.ndim else store).write(part).result()
        row = end
    return checksum % 2**32


def stored_rows(store: Any) -> list[Any]:
    """Rows of the first axis of a TensorStore whose chunks must be read together anyway."""
    if not store.shape:
        return [...]
    num_rows = store.chunk_layout.read_chunk.shape[0]
    return [
        slice(row, min(row + num_rows, store.shape[0]))
        for row in range(0, store.shape[0], num_rows)
    ]


def _chunks(shape: tuple[int, ...], itemsize: int, limit: int = 2**26) -> list[int]:
    """Chunks of whole rows, up to 64 MiB; a layer of a stack has its own."""
    room, chunks = limit // itemsize, []
    for size in reversed(shape):
        chunks.insert(0, min(size, max(1, room)))
        room //= size
    return [1, *chunks[1:]] if len(shape) > 2 else chunks
