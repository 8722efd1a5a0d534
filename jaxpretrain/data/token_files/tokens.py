"""Examples of tokens, which are windows over token files that are checked when they are opened."""

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files import token_sample
from jaxpretrain.data.token_files.manifest import Dtype, Manifest, Split
from jaxpretrain.storage.files import relative, sha256_of, stat_of

Verify = Literal["auto", "size", "hash"]

HASHED_BY_DEFAULT = 10**9
"""The size of token files in bytes up to which `verify="auto"` compares hashes: about a second."""
MAX_OPEN_FILES = 512
"""The number of maps that are open at once. Each holds a file descriptor, of 1024 by default."""
_LLM_C = tuple(number.to_bytes(4, "little") for number in (20240520, 20240801))
"""The first bytes of the token files of llm.c."""
MOSTLY = 0.5
"""The share of a file's ids from which on one id is worth a warning."""


@dataclass(frozen=True)
class TokenFile:
    """A checked token file."""

    path: Path
    num_tokens: int
    identity: str
    """A text that other content does not have: its SHA-256 where known, else its name and size."""


@dataclass(frozen=True)
class TokenFiles:
    """Windows of `seq_len` token ids over memory-mapped files, as OLMo cuts them; picklable.

    Windows never cross a file. Each file is cut to a whole number of runs of `chunk` windows, and
    indices run over the files in order. Files are opened at first use.
    """

    files: Sequence[TokenFile]
    dtype: str
    seq_len: int
    vocab_size: int
    checked: str
    """The check of the files, in words."""
    chunk: int = 1
    notes: tuple[str, ...] = ()
    """Lines about what was found when the files were opened."""
    _opened: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @cached_property
    def _bounds(self) -> np.ndarray:
        """The index of the first window of each file, and the number of all, int64 [files + 1]."""
        run = self.seq_len * self.chunk
        counts = [file.num_tokens // run * self.chunk for file in self.files]
        return np.cumsum([0, *counts], dtype=np.int64)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the files, with remainders."""
        return sum(file.num_tokens for file in self.files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns the tokens, int32 [n, seq_len], of the windows at these indices, int64 [n].

        Raises InputError for an id outside the vocabulary: such a file was written with another
        tokenizer or type, and nothing that is learnt from it can be right.
        """
        tokens = np.empty((len(indices), self.seq_len), np.int32)
        self.read_into(tokens, np.arange(len(indices)), indices)
        return tokens

    def read_into(self, tokens: np.ndarray, rows: np.ndarray, indices: np.ndarray) -> None:
        """Reads windows into these rows, int64 [n], of `tokens`, int32 [m, seq_len]."""
        files, windows = self._locate(indices)
        for number in np.unique(files).tolist():
            opened = self._open(number)
            for position in np.flatnonzero(files == number).tolist():
                window, row = int(windows[position]), tokens[rows[position]]
                row[:] = opened[window]
                # As unsigned, a uint32 id above 2**31 is a large number and not a negative one.
                ids = row.view(np.uint32)
                if int(ids.max()) >= self.vocab_size:
                    column = int(np.argmax(ids >= self.vocab_size))
                    raise InputError(
                        f"{self.files[number].path}: token {window * self.seq_len + column} is"
                        f" {ids[column]}, outside the vocabulary of {self.vocab_size}; check the"
                        " tokenizer, and the dtype of raw files"
                    )

    def places(self, indices: np.ndarray) -> list[tuple[Path, int]]:
        """Returns (file, number of its first token in the file) of each window."""
        numbers, windows = self._locate(indices)
        starts = (windows * self.seq_len).tolist()
        return [(self.files[n].path, start) for n, start in zip(numbers, starts, strict=True)]

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (file, window within it) of each index, all int64 [n]."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"window {indices.min()}..{indices.max()} of {len(self)}")
        files = np.searchsorted(self._bounds[1:], indices, side="right")
        return files, indices - self._bounds[files]

    def _open(self, number: int) -> np.ndarray:
        """Returns the windows of one file, [num_windows, seq_len], on its memory map."""
        if number not in self._opened:
            file = self.files[number]
            try:
                with file.path.open("rb") as opened:
                    data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise InputError(f"{file.path}: cannot be read ({error})") from None
            if len(self._opened) >= MAX_OPEN_FILES:
                del self._opened[next(iter(self._opened))]
            dtype, num_windows = np.dtype(self.dtype), file.num_tokens // self.seq_len
            items = np.frombuffer(data, dtype.newbyteorder("<"), num_windows * self.seq_len)
            self._opened[number] = items.reshape(num_windows, self.seq_len)
        return self._opened[number]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": {}}


def open_split(
    root: Path,
    manifest: Manifest,
    split: str,
    *,
    seq_len: int,
    vocab_size: int,
    verify: Verify,
    chunk: int = 1,
) -> TokenFiles:
    """Opens the token files of a split of a prepared directory, checked against its manifest."""
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
        if (size := stat_of(path).st_size) != file.num_bytes:
            raise InputError(f"{path}: has {size} bytes, its manifest says {file.num_bytes}")
        if by_hash and sha256_of(path) != file.sha256:
            raise InputError(f"{path}: is damaged, its SHA-256 is not the manifest's")
        files.append(TokenFile(path, file.num_tokens, file.sha256))
    checked = "sizes and SHA-256 match the manifest" if by_hash else "sizes match the manifest"
    notes = _look_into([file.path for file in files], manifest.dtype)
    # An id between the tokenizer's size and a padded vocabulary's is as wrong as any other.
    return TokenFiles(files, manifest.dtype, seq_len, manifest.vocab_size, checked, chunk, notes)


def find_split(root: Path, manifest: Manifest, split: str) -> Split:
    """Returns a split of the manifest of a folder; raises InputError where there is none."""
    splits = manifest.splits
    if split not in splits:
        raise InputError(f"{root}: has no split {split!r}; its splits are {', '.join(splits)}")
    return splits[split]


def open_raw(
    root: Path,
    paths: Sequence[Path],
    *,
    dtype: Dtype,
    seq_len: int,
    vocab_size: int,
    flag: str | None,
    chunk: int = 1,
    notes: Sequence[str] = (),
) -> TokenFiles:
    """Opens token files without a manifest, in the given order; a path may occur twice.

    `notes` are lines about how the files were found. Raises InputError for a file whose ids look
    like those of another type; it names `flag`. With None the type is trusted.
    """
    if flag is not None:
        token_sample.check_vocabulary(
            dtype, vocab_size, str(paths[0] if len(paths) == 1 else root), flag
        )
    files = []
    for path in paths:
        size = stat_of(path).st_size
        num_tokens, rest = divmod(size, np.dtype(dtype).itemsize)
        if rest:
            raise InputError(f"{path}: {size} bytes are not a whole number of {dtype} tokens")
        files.append(TokenFile(path, num_tokens, f"{relative(path, root)}:{size}"))

    def check(path: Path, sample: bytes) -> None:
        if sample.startswith(b"\x93NUMPY"):
            raise InputError(
                f"{path}: is a NumPy file with a header; token files hold nothing but ids"
            )
        if sample[:4] in _LLM_C:
            raise InputError(
                f"{path}: begins with the header of llm.c, 1,024 bytes; token files hold nothing"
                f" but ids: tail -c +1025 {path} > NEW"
            )
        if flag is not None:
            token_sample.check_type(path, sample, dtype, vocab_size, flag)

    notes = (*notes, *_look_into(paths, dtype, check))
    sampled = "" if flag is None else f", and a sample of each looks like {dtype}"
    checked = f"no manifest: sizes are whole {dtype} tokens{sampled}"
    return TokenFiles(files, dtype, seq_len, vocab_size, checked, chunk, notes)


def _look_into(
    paths: Sequence[Path], dtype: Dtype, check: Callable[[Path, bytes], None] | None = None
) -> tuple[str, ...]:
    """Checks a sample of each file; returns a warning where files are mostly one id."""

    def look(path: Path) -> tuple[int, float]:
        sample = token_sample.read_sample(path)
        if check is not None:
            check(path, sample)
        return token_sample.most_common(sample, dtype)

    different = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(16) as pool:  # there may be thousands, on a slow disk
        common = list(pool.map(look, different))
    mostly = [(*found, path) for found, path in zip(common, different, strict=True)]
    mostly = [found for found in mostly if found[1] > MOSTLY]
    if not mostly:
        return ()
    token, share, path = max(mostly, key=lambda found: found[1])
    return (
        f"warning: {len(mostly):,} of {len(different):,} token files are mostly one id: in a sample"
        f" of {path}, {share:.0%} of the ids are {token}. This may be padding, or ids of another"
        " type",
    )
