"""The `.idx` of Megatron's token files: the type of the ids in the `.bin`, and its documents.

Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py (version 1 of the format).
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.manifest import Dtype
from jaxpretrain.storage.files import stat_of

INDEX = ".idx"

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")
_TYPES = ("", "uint8", "int8", "int16", "int32", "int64", "float64", "float32", "uint16")
"""The type of each code."""
_READ: dict[str, Dtype] = {"uint16": "uint16", "int32": "uint32"}  # ids are not negative
_SAMPLED = 16
"""The number of documents of a file whose last token is looked at."""


@dataclass(frozen=True)
class Index:
    """The content of a `.idx`, in the order of the `.bin`."""

    path: Path
    """The `.bin`."""
    dtype: Dtype
    num_documents: int
    last_ids: tuple[int, ...]
    """The last tokens of some documents."""


def read_index(path: Path) -> Index | None:
    """Returns the index beside a `.bin`, checked against its size; None where there is none."""
    file = path.with_suffix(INDEX)
    if path.suffix != ".bin" or not file.exists():
        return None
    size = stat_of(file).st_size
    with file.open("rb") as opened:
        head = opened.read(_HEAD.size)
    if len(head) < _HEAD.size or head[:9] != _MAGIC:
        raise InputError(f"{file}: is no index of Megatron's; rename it if it belongs to no .bin")
    _, version, code, num_sequences, num_bounds = _HEAD.unpack(head)
    kind = _TYPES[code] if code < len(_TYPES) else f"type {code}"
    if version != 1 or size < _HEAD.size + 12 * num_sequences + 8 * num_bounds:
        raise InputError(f"{file}: is cut short, or of a version other than 1")
    if kind not in _READ:
        raise InputError(
            f"{path}: its index says {kind}; token files are read as uint16, or as int32 that hold"
            " no negative ids: write it again with a smaller type"
        )
    dtype = _READ[kind]
    lengths = np.memmap(file, "<i4", "r", _HEAD.size, (num_sequences,))
    starts = np.memmap(file, "<i8", "r", _HEAD.size + 4 * num_sequences, (num_sequences,))
    bounds = np.memmap(file, "<i8", "r", _HEAD.size + 12 * num_sequences, (num_bounds,))
    width, num_bytes = np.dtype(dtype).itemsize, stat_of(path).st_size
    if (told := int(lengths.sum(dtype=np.int64)) * width) != num_bytes:
        raise InputError(f"{path}: has {num_bytes} bytes, its index {file.name} says {told}")
    ends = bounds[1:][bounds[1:] > 0]
    if len(ends) and not 0 < int(ends.max()) <= num_sequences:
        raise InputError(f"{file}: is damaged: a document ends with sequence {int(ends.max())}")
    tokens = np.memmap(path, np.dtype(dtype).newbyteorder("<"), "r") if num_bytes else []
    chosen = ends[:: max(len(ends) // _SAMPLED, 1)] - 1
    places = [int(starts[k]) // width + int(lengths[k]) - 1 for k in chosen.tolist()]
    if any(not 0 <= place < len(tokens) for place in places):
        raise InputError(f"{file}: is damaged: a document ends outside {path.name}")
    return Index(path, dtype, len(bounds[1:]), tuple(int(tokens[place]) for place in places))


def common_type(indices: Iterable[Index]) -> Dtype | None:
    """Returns the type of the ids of all files; None without indices, InputError for several."""
    by_type: dict[Dtype, Path] = {index.dtype: index.path for index in indices}
    if len(by_type) > 1:
        listed = ", ".join(f"{dtype} in {path}" for dtype, path in by_type.items())
        raise InputError(f"token files of one source have one type of ids, here {listed}")
    return next(iter(by_type), None)


def common_end(indices: Iterable[Index]) -> int | None:
    """Returns the id that documents end with; None where they end with several, or none."""
    ids = {id_ for index in indices for id_ in index.last_ids}
    return ids.pop() if len(ids) == 1 else None
