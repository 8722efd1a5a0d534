"""A check by a sample that the ids of a token file are of the type that they are read as.

Token files have no header. Read as another type, most give ids outside the vocabulary, but some
give wrong ids inside it: uint32 ids below 65,536 are uint16 pairs of an id and a 0.
"""

import os
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.manifest import Dtype

_BLOCK = 2**13
"""The number of bytes that are read at the beginning, in the middle and at the end of a file."""
_ENOUGH = 16
"""The number of ids other than 0 from which on their places say something."""
_SMALL = 16
"""The upper two bytes of an id lie below this: vocabularies have less than a million ids."""
_NAMES = {
    **{"<u2": "uint16", "<u4": "uint32", "<u8": "int64"},
    **{">u2": "big-endian uint16", ">u4": "big-endian uint32", ">u8": "big-endian int64"},
}


def read_sample(path: Path) -> bytes:
    """Returns up to 24 KiB of a file, in groups of 8 bytes that begin at multiples of 8 in it."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= 3 * _BLOCK:
                return file.read()
            blocks = []
            for start in (0, size // 2, size - _BLOCK):
                file.seek(start // 8 * 8)
                blocks.append(file.read(_BLOCK))
            return b"".join(blocks)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def check_vocabulary(dtype: Dtype, vocab_size: int, where: str, flag: str) -> None:
    """Raises InputError for a type that cannot hold all ids of the vocabulary.

    `flag` begins the names of the fields that say how ids are stored.
    """
    if dtype == "uint16" and vocab_size > 2**16:
        raise InputError(
            f"{where}: uint16 cannot hold the ids of a vocabulary of {vocab_size:,}; set"
            f" {flag}.dtype=uint32, or {flag}.trust_dtype=true where the files' own tokenizer is"
            " smaller"
        )


def check_type(path: Path, sample: bytes, dtype: Dtype, vocab_size: int, flag: str) -> None:
    """Raises InputError where the sample of a file looks more like another type."""
    kind = other_type(sample, dtype, vocab_size)
    if kind is None:
        return
    if kind in ("<u2", "<u4"):
        remedy = f"set {flag}.dtype={_NAMES[kind]}"
    else:
        new = "uint16" if vocab_size <= 2**16 else "uint32"
        remedy = (
            f"rewrite it, np.fromfile(file, '{kind}').astype('<u{np.dtype(new).itemsize}')"
            f".tofile(new_file), and set {flag}.dtype={new}"
        )
    raise InputError(
        f"{path}: its ids look like {_NAMES[kind]}, not like little-endian {dtype}; {remedy}. If"
        f" they are {dtype} (a file that is mostly padding may look otherwise), set"
        f" {flag}.trust_dtype=true"
    )


def other_type(sample: bytes, dtype: Dtype, vocab_size: int) -> str | None:
    """Returns the NumPy type that a sample looks more like; None where it may be of `dtype`."""
    own = np.dtype(dtype).newbyteorder("<").str
    sample = sample[: len(sample) // 8 * 8]
    readings = {kind: np.frombuffer(sample, kind) for kind in _NAMES}
    if np.count_nonzero(readings[own]) < _ENOUGH:
        return None
    inside = {kind: bool((ids < vocab_size).all()) for kind, ids in readings.items()}
    width = np.dtype(dtype).itemsize
    for kind in ("<u8", ">u8", "<u4", ">u4"):  # an int64 looks like pairs of uint32, too
        ids = readings[kind]
        if ids.itemsize <= width or np.count_nonzero(ids) < _ENOUGH:
            continue
        if inside[kind] or _is_padded(readings[own], ids.itemsize // width, kind[0]):
            return kind
    swapped = own.replace("<", ">")
    if not inside[own]:
        return next((kind for kind in (swapped, "<u2", ">u2") if inside[kind]), None)
    if width == 2 and _is_swapped(readings[own]):
        return swapped
    return None


def _is_padded(words: np.ndarray, num_words: int, order: str) -> bool:
    """Returns true where words look like parts of wider ids: all but the lowest are small."""
    places = (words if order == "<" else words.byteswap()).reshape(-1, num_words)
    lowest = 0 if order == "<" else num_words - 1
    small = np.mean(places < _SMALL, axis=0)
    return bool(small[lowest] < 0.5 and np.all(np.delete(small, lowest) > 0.99))


def _is_swapped(ids: np.ndarray) -> bool:
    """Returns true where the upper bytes vary more than the lower ones, which no tokenizer's do."""
    return len(ids) >= 1024 and _entropy(ids >> 8) > _entropy(ids & 0xFF) + 1.0


def _entropy(values: np.ndarray) -> float:
    """Returns the bits of a value."""
    shares = np.bincount(values) / len(values)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def most_common(sample: bytes, dtype: Dtype) -> tuple[int, float]:
    """Returns the most common id of a sample and its share; (0, 0.0) for an empty file."""
    kind = np.dtype(dtype).newbyteorder("<")
    ids = np.frombuffer(sample[: len(sample) // kind.itemsize * kind.itemsize], kind)
    if not len(ids):
        return 0, 0.0
    values, counts = np.unique(ids, return_counts=True)
    return int(values[counts.argmax()]), float(counts.max() / len(ids))
