"""Windows of tokens over memory-mapped token files, as OLMo cuts them.

Windows of `seq_len` tokens never cross a file; the remainder of each file is dropped; example
ids run over the files in order. The files are headerless little-endian token ids.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.files import sha256_of
from jaxpretrain.data.manifest import Dtype, Manifest, Split

Verify = Literal["auto", "size", "hash"]

HASHED_BY_DEFAULT = 10**9
"""Bytes of token files up to which `verify="auto"` compares hashes: about a second."""

MAX_OPEN_FILES = 512
"""Maps kept at once. Each holds a file descriptor, and the usual limit on those is 1024."""


@dataclass(frozen=True)
class TokenFile:
    """A checked file."""

    path: Path
    num_tokens: int
    identity: str
    """What tells its content apart: its SHA-256 where known, else its name and size."""


class TokenFiles:
    """Examples of `seq_len` token ids, by index. Files are opened at first use; picklable."""

    def __init__(
        self, files: Sequence[TokenFile], dtype: Dtype, seq_len: int, vocab_size: int, checked: str
    ):
        self.files = tuple(files)
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self.checked = checked
        """How the files were verified, in words."""
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._ends = np.cumsum([file.num_tokens // seq_len for file in files], dtype=np.int64)
        self._windows: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_tokens(self) -> int:
        """Tokens in the files, remainders included."""
        return sum(file.num_tokens for file in self.files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Tokens, int32 [n, seq_len], of the examples `indices`, int64 [n].

        Raises InputError for an id outside the vocabulary: such a file was written with
        another tokenizer or dtype, and nothing that is learnt from it can be right.
        """
        tokens = np.empty((len(indices), self.seq_len), np.int32)
        self.read_into(tokens, np.arange(len(indices)), indices)
        return tokens

    def read_into(self, tokens: np.ndarray, rows: np.ndarray, indices: np.ndarray) -> None:
        """As `read`, into the rows `rows`, int64 [n], of `tokens`, int32 [m, seq_len]."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"example {indices.min()}..{indices.max()} of {len(self)}")
        numbers = np.searchsorted(self._ends, indices, side="right")
        # Read as unsigned, a uint32 id above 2**31 is a large number and not a negative one.
        unsigned = tokens.view(np.uint32)
        for number in np.unique(numbers):
            here = numbers == number
            start = self._ends[number - 1] if number else 0
            windows = self._open(int(number))
            for row, window in zip(rows[here], indices[here] - start, strict=True):
                tokens[row] = windows[window]
                if int(unsigned[row].max()) >= self.vocab_size:
                    self._raise_bad_id(unsigned[row], int(number), int(window))

    def _open(self, number: int) -> np.ndarray:
        """The windows of one file, [num_windows, seq_len], on its memory map."""
        if number not in self._windows:
            file = self.files[number]
            try:
                with file.path.open("rb") as opened:
                    data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise InputError(f"{file.path}: cannot be read ({error})") from None
            if len(self._windows) >= MAX_OPEN_FILES:
                del self._windows[next(iter(self._windows))]
            num_windows = file.num_tokens // self.seq_len
            tokens = np.frombuffer(data, self._dtype, num_windows * self.seq_len)
            self._windows[number] = tokens.reshape(num_windows, self.seq_len)
        return self._windows[number]

    def _raise_bad_id(self, tokens: np.ndarray, number: int, window: int) -> None:
        column = int(np.argmax(tokens >= self.vocab_size))
        raise InputError(
            f"{self.files[number].path}: token {window * self.seq_len + column} is"
            f" {tokens[column]}, outside the vocabulary of {self.vocab_size}; check the tokenizer,"
            " and the dtype of raw files"
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_windows": {}}


def open_split(
    root: Path, manifest: Manifest, split: str, *, seq_len: int, vocab_size: int, verify: Verify
) -> TokenFiles:
    """The token files of one split of a prepared directory, checked against its manifest."""
    described = find_split(root, manifest, split)
    if manifest.vocab_size > vocab_size:
        raise InputError(
            f"{root}: its tokenizer has {manifest.vocab_size} ids, but the model's vocabulary is"
            f" {vocab_size}; set model.vocab_size to at least {manifest.vocab_size}"
        )
    total = sum(file.num_bytes for file in described.files)
    by_hash = verify == "hash" or (verify == "auto" and total <= HASHED_BY_DEFAULT)
    files = []
    for file in described.files:
        path = root / file.name
        size = _size(path)
        if size != file.num_bytes:
            raise InputError(f"{path}: has {size} bytes, its manifest says {file.num_bytes}")
        if by_hash and sha256_of(path) != file.sha256:
            raise InputError(f"{path}: is damaged, its SHA-256 is not the manifest's")
        files.append(TokenFile(path, file.num_tokens, file.sha256))
    checked = "sizes and SHA-256 match the manifest" if by_hash else "sizes match the manifest"
    # An id between the tokenizer's size and a padded vocabulary's is as wrong as any other.
    return TokenFiles(files, manifest.dtype, seq_len, manifest.vocab_size, checked)


def find_split(root: Path, manifest: Manifest, split: str) -> Split:
    """That split of the manifest of `root`; raises InputError when there is none."""
    if split not in manifest.splits:
        raise InputError(
            f"{root}: has no split {split!r}; its splits are {', '.join(manifest.splits)}"
        )
    return manifest.splits[split]


def open_raw(
    root: Path, paths: Sequence[Path], *, dtype: Dtype, seq_len: int, vocab_size: int
) -> TokenFiles:
    """Raw token files without a manifest, in the given order; a path may occur twice."""
    itemsize = np.dtype(dtype).itemsize
    files = []
    for path in paths:
        size = _size(path)
        if size % itemsize:
            raise InputError(f"{path}: {size} bytes are not a whole number of {dtype} tokens")
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise InputError(
                    f"{path}: is a NumPy file with a header; token files hold nothing but ids"
                )
        name = path.relative_to(root) if path.is_relative_to(root) else path
        files.append(TokenFile(path, size // itemsize, f"{name}:{size}"))
    checked = f"no manifest: sizes are whole {dtype} tokens"
    return TokenFiles(files, dtype, seq_len, vocab_size, checked)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
