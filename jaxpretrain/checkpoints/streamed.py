"""Arrays that are written and read part by part, so that none need be in memory whole."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import tensorstore as ts

from jaxpretrain.checkpoints.names import kind, part_checksum
from jaxpretrain.storage.paths import kvstore

COMMIT = "commit_success.txt"
"""The last file of a checkpoint. Orbax asks for it where a store cannot rename, as a bucket."""
_CHUNK_BYTES = 2**26
_CACHE_BYTES = 2**26
"""Bytes of a checkpoint's index and arrays that are kept in memory while it is read."""


class CorruptCheckpoint(Exception):
    """A checkpoint that cannot be read, or that reads other than it was written."""


@dataclass(frozen=True)
class Streamed:
    """An array of which only a part need be in memory at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterable[np.ndarray]]
    """Function that makes the parts anew: consecutive rows of the first axis."""


def write_streamed(
    directory: Path, step: int, arrays: Mapping[str, Streamed], extra: Mapping[str, object]
) -> None:
    """Writes the checkpoint `directory/<step>`, one array at a time, as one that was saved.

    It is not atomic: nobody may look at `directory` before this has returned.
    """
    folder = directory.absolute() / str(step)
    found = {
        name: {**kind(array), "checksum": _write_array(folder / "state" / name, array)}
        for name, array in arrays.items()
    }
    # Orbax's own description of a tree: a dict of arrays, each a Zarr folder.
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
    (folder / COMMIT).touch()


def _write_array(folder: Path, array: Streamed) -> int:
    """Writes a Zarr array; returns its checksum, as `checksums` computes it."""
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "chunks": _chunks(array.shape, array.dtype.itemsize),
            "compressor": {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1},
        },
        "store_data_equal_to_fill_value": True,  # a restore takes missing chunks for damage
    }
    store = ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
    checksum = row = 0
    for part in array.parts():
        checksum += part_checksum(part)
        end = row + (len(part) if part.ndim else 0)
        (store[row:end] if part.ndim else store).write(part).result()
        row = end
    return checksum % 2**32


def opener(state: Path) -> Callable[[str], ts.TensorStore]:
    """Returns the function that opens an array of the folder `<step>/state`, by its name.

    It raises ValueError where the array cannot be read. The index of the arrays is read once, which
    in a bucket saves several requests for each, so the folder must be complete.
    """
    is_ocdbt = (state / "manifest.ocdbt").exists()
    context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})

    def open_(name: str) -> ts.TensorStore:
        store: dict[str, object] = kvstore(state / name)
        if is_ocdbt:
            store = {"driver": "ocdbt", "base": kvstore(state), "path": f"{name}/"}
        as_read = {"recheck_cached_metadata": False, "recheck_cached_data": False}
        spec = {"driver": "zarr", "kvstore": store, **as_read}
        return ts.open(spec, open=True, context=context).result()

    return open_


def stored_array(
    open_: Callable[[str], ts.TensorStore], name: str, described: Mapping[str, Any]
) -> Streamed:
    """Returns an array that `open_` opens, and that the checkpoint's document describes.

    Reading its parts raises CorruptCheckpoint where it is not what was written.
    """

    def parts() -> Iterator[np.ndarray]:
        checksum = 0
        try:
            opened = open_(name)
            stored = {"shape": list(opened.shape), "dtype": opened.dtype.name}
            if stored != {key: described[key] for key in stored}:
                raise CorruptCheckpoint(f"{name} is stored as {stored}")
            for rows in _stored_rows(opened):
                part = np.asarray(opened[rows].read().result())
                checksum += part_checksum(part)
                yield part
        except ValueError as error:  # all that TensorStore raises
            raise CorruptCheckpoint(str(error).strip().splitlines()[0][:160]) from error
        if checksum % 2**32 != described["checksum"]:
            raise CorruptCheckpoint(f"the checksum of {name} differs")

    return Streamed(tuple(described["shape"]), np.dtype(described["dtype"]), parts)


def _stored_rows(store: Any) -> list[slice | EllipsisType]:
    """Returns the rows of the first axis whose chunks must be read together anyway."""
    if not store.shape:
        return [...]
    num_rows = store.chunk_layout.read_chunk.shape[0]
    return [
        slice(row, min(row + num_rows, store.shape[0]))
        for row in range(0, store.shape[0], num_rows)
    ]


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """Returns chunks of whole rows, up to 64 MiB; a layer of a stack has its own."""
    room, chunks = _CHUNK_BYTES // itemsize, []
    for size in reversed(shape):
        chunks.insert(0, min(size, max(1, room)))
        room //= size
    return [1, *chunks[1:]] if len(shape) > 2 else chunks
