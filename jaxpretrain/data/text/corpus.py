"""A corpus of token files: how it is named in a config, found, checked and opened.

It is a directory that `prepare` made, with a manifest, or one of raw token ids: OLMo's `.npy`,
Megatron's `.bin` with `.idx`, or nanoGPT's `train.bin` and `val.bin`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PlaceText
from jaxpretrain.config.schema import Mark
from jaxpretrain.data.folders import Found, files_below, find_files, read_list
from jaxpretrain.data.prepare.prepare_text import UNFINISHED, PrepareText, cache_name, prepare_text
from jaxpretrain.data.token_files.manifest import MANIFEST, Dtype, Manifest, load_manifest
from jaxpretrain.data.token_files.megatron import (
    INDEX,
    Index,
    common_end,
    common_type,
    read_index,
)
from jaxpretrain.data.token_files.tokenizer import read_tokenizer, token_bytes
from jaxpretrain.data.token_files.tokens import TokenFiles, Verify, open_raw, open_split
from jaxpretrain.storage.copies import local_copy
from jaxpretrain.storage.files import cache_dir
from jaxpretrain.storage.paths import is_remote, parse

TOKENS = (".npy", ".bin")
"""The suffixes of token files; where there are files with the first, others are none."""
_HELD_OUT = {"validation": ("validation.bin", "val.bin"), "train": ("train.bin",)}
"""The files that are a split by their name, as nanoGPT calls them."""


@dataclass(frozen=True)
class RawTokens:
    """The reading of token files without a manifest, and masks beside token files."""

    dtype: Dtype = "uint16"
    """Type of token ids in files without a manifest: uint16 for OLMo 1, uint32 for OLMo 2."""
    trust_dtype: Annotated[bool, Mark.NO_EFFECT] = False
    """Reads raw files as `dtype` even where a sample of their ids looks like another type."""
    label_mask: PlaceText | None = None
    """Directory with a mask for each token file, of the same name relative to it as the token file
    has to `root`: one byte a token, 0 for tokens that are not to be learnt."""


@dataclass(frozen=True)
class TextSource:
    """The place of a corpus of token files."""

    root: Annotated[PlaceText | None, Mark.NO_EFFECT] = None
    """Directory of token files: one that `prepare` made, OLMo's raw .npy files, or .bin files of
    Megatron or nanoGPT."""
    prepare: PrepareText | None = None
    """The text that is prepared, once, in the cache directory, where `root` is none."""
    train_split: Annotated[str, Mark.SAME_SCORES] = "train"
    """Split, or subdirectory of raw files, to train on."""
    validation_split: str | None = "validation"
    """Split, or subdirectory of raw files, to evaluate on; none: there is no evaluation."""
    raw: RawTokens | None = None
    """Type of ids in files without a manifest, and masks; none: that of a Megatron index, or else
    uint16, checked by a sample."""
    file_list: PlaceText | None = None
    """For raw files: a text file with one path a line, relative to `root`, in the order of the
    run's examples; a repeated path counts again. none: the sorted paths."""

    @property
    def label_mask(self) -> str | None:
        """The directory of the label masks; None where there are none."""
        return self.raw.label_mask if self.raw else None


@dataclass(frozen=True)
class Corpus:
    """The directory of a `TextSource`, with its manifest, and the way in which it is read."""

    source: TextSource
    flag: str
    """The path of the source in the config, for messages: "data"."""
    root: Path
    manifest: Manifest | None
    seq_len: int
    vocab_size: int
    verify: Verify

    @classmethod
    def find(
        cls, source: TextSource, flag: str, seq_len: int, vocab_size: int, verify: Verify
    ) -> "Corpus":
        """Finds the corpus of a source, which is prepared first where the source says so.

        Raises InputError where it is missing, unfinished, or not with its own tokenizer.
        """
        root = data_root(source, flag)
        if not root.is_dir():
            raise InputError(f"{root}: no such directory; {_how_to_get(flag)}")
        manifest = load_manifest(root) if (root / MANIFEST).exists() else None
        corpus = cls(source, flag, root, manifest, seq_len, vocab_size, verify)
        if manifest is None and (root / UNFINISHED).exists():
            raise InputError(
                f"{root}: is unfinished; run the same `python -m jaxpretrain.prepare` again"
            )
        if manifest and source.file_list:
            raise InputError(f"{root}: has a manifest, which {flag}.file_list cannot replace")
        if manifest and (path := corpus.tokenizer_path):
            content = read_tokenizer(path).encode()
            if hashlib.sha256(content).hexdigest() != manifest.tokenizer.sha256:
                raise InputError(f"{path}: is not the tokenizer that made these files")
        return corpus

    @property
    def tokenizer_path(self) -> Path | None:
        """The `tokenizer.json` of the files; None for raw ones."""
        return self.root / self.manifest.tokenizer.file if self.manifest else None

    def open_train(self, chunk: int = 1) -> TokenFiles:
        """Opens the sequences to train on, at least one; a whole number of chunks of each file."""
        return self._open(self.source.train_split, "set data.seq_len", chunk)

    def open_validation(self) -> TokenFiles | None:
        """Opens the sequences to evaluate on, at least one; None where there is no such split."""
        split = self.source.validation_split
        if split is None:
            return None
        if self.manifest is None and not (self.root / split).is_dir() and not self._file_of(split):
            return None
        return self._open(split, f"lower data.seq_len, or set {self.flag}.validation_split=none")

    def token_bytes(self) -> np.ndarray | None:
        """Returns the bytes of text of each id, int32 [vocab]; None where they are not known."""
        if self.manifest is None or not self.manifest.tokenizer.byte_exact:
            return None
        return token_bytes(read_tokenizer(self.root / self.manifest.tokenizer.file))

    def _open(self, split: str, if_short: str, chunk: int = 1) -> TokenFiles:
        """Opens a split; `if_short` is the advice where it holds not one sequence."""
        sizes = {"seq_len": self.seq_len, "vocab_size": self.vocab_size, "chunk": chunk}
        if self.manifest:
            files = open_split(self.root, self.manifest, split, verify=self.verify, **sizes)
        elif self.verify == "hash":
            raise InputError(f"{self.root}: has no manifest, so no hashes to verify by")
        else:
            files = self._open_raw(split, sizes)
        if not len(files):
            raise InputError(
                f"{self.root}: split {split} has {files.num_tokens} tokens in {len(files.files)}"
                f" files, not one sequence of {self.seq_len}; {if_short}"
            )
        return files

    def _open_raw(self, split: str, sizes: Mapping[str, int]) -> TokenFiles:
        paths, notes = self._raw_paths(split)
        raw, indices = self.source.raw or RawTokens(), _indices(paths)
        dtype = common_type(indices) or raw.dtype
        if self.source.raw and dtype != raw.dtype and not raw.trust_dtype:
            raise InputError(
                f"{indices[0].path}: its index says {dtype}; set {self.flag}.raw.dtype={dtype}, or"
                f" leave {self.flag}.raw out"
            )
        if indices:
            end, count = common_end(indices), sum(index.num_documents for index in indices)
            ends = "do not end with one id, so that nothing marks their ends"
            ends = ends if end is None else f"end with id {end}"
            notes = (*notes, f"{self.root}: {count:,} documents by the indices, which {ends}")
        flag = None if raw.trust_dtype else f"{self.flag}.raw=raw_tokens and {self.flag}.raw"
        dtype = raw.dtype if raw.trust_dtype else dtype
        return open_raw(self.root, paths, dtype=dtype, flag=flag, notes=notes, **sizes)

    def eos_id(self) -> int | None:
        """Returns the id that ends documents, of the manifest or of Megatron's indices, if any."""
        if self.manifest is not None:
            return self.manifest.eos_id
        return common_end(_indices(self._raw_paths(self.source.train_split)[0]))

    def _file_of(self, split: str) -> Path | None:
        """Returns the file that is a split by its name; None where there is none."""
        names = _HELD_OUT.get(split, (f"{split}.bin",))
        return next((self.root / name for name in names if (self.root / name).is_file()), None)

    def _raw_paths(self, split: str) -> Found:
        source = self.source
        if source.file_list and split == source.train_split:
            return [self.root / name for name in _listed(source, self.flag)], ()
        if own := self._file_of(split):
            return [own], ()
        held_out = self._file_of(source.validation_split) if source.validation_split else None
        names = [name for name in (source.train_split, source.validation_split) if name]
        # Without such folders all files are for training; with them, only those of the split.
        divided = any((self.root / name).is_dir() for name in names)
        folder = self.root / split if divided else self.root
        if not folder.is_dir():
            raise InputError(f"{folder}: holds no token files; {_how_to_get(self.flag)}")
        found = {path.suffix for path in files_below(folder)[0]}
        suffix = next((suffix for suffix in TOKENS if suffix in found), TOKENS[0])
        return find_files(
            folder,
            lambda path: path.suffix == suffix and path != held_out,
            beside=(INDEX,),
            what=f"token files ({', '.join(f'*{suffix}' for suffix in TOKENS)})",
            if_none=_how_to_get(self.flag),
            if_few=f"name the token files in {self.flag}.file_list",
        )


def data_root(source: TextSource, flag: str = "data") -> Path:
    """Returns the directory of the token files, which are prepared first where that is due."""
    if source.root is not None:
        return _on_this_machine(source, flag)
    if source.prepare is None:
        raise InputError(f"{flag}.root is not set; {_how_to_get(flag)}")
    root = cache_dir() / "text" / cache_name(source.prepare)
    if not (root / MANIFEST).exists():
        # In this process, with the tokenizer's own threads: spawned ones would import the
        # caller's main module again.
        prepare_text(source.prepare, root, workers=1)
    return root


def _on_this_machine(source: TextSource, flag: str) -> Path:
    """Returns `root`, or the copy of its files in the cache where it is in a bucket."""
    root = parse(source.root or "", f"{flag}.root")
    if not is_remote(root):
        return root
    has_manifest, hashes = (root / MANIFEST).exists(), {}
    if has_manifest:  # a folder of one file, which tells the hashes of the others
        manifest = load_manifest(local_copy(root, lambda name: name == MANIFEST))
        files = (file for split in manifest.splits.values() for file in split.files)
        hashes = {file.name: file.sha256 for file in files}
    listed = set(_listed(source, flag)) if source.file_list else None

    def is_wanted(name: str) -> bool:
        if has_manifest:
            return name in hashes or name.endswith(".json")
        is_held_out = source.validation_split and name.startswith(f"{source.validation_split}/")
        name = name.removesuffix(INDEX) + ".bin" if name.endswith(INDEX) else name
        return name.endswith(TOKENS) and (listed is None or name in listed or bool(is_held_out))

    local = local_copy(root, is_wanted, hashes)
    if not local.is_dir():  # a file, or only files that are not wanted
        raise InputError(f"{flag}.root={root}: is no folder of token files; {_how_to_get(flag)}")
    return local


def _indices(paths: Iterable[Path]) -> list[Index]:
    """Returns the indices of those files that have one, each once."""
    found = (read_index(path) for path in dict.fromkeys(paths))
    return [index for index in found if index is not None]


def _listed(source: TextSource, flag: str) -> list[str]:
    """Returns the names in the list of files."""
    given = source.file_list or ""
    path = local_copy(parse(given, f"{flag}.file_list"))
    return read_list(path, f"{flag}.file_list {given}")


def _how_to_get(flag: str) -> str:
    return (
        "make token files with `python -m jaxpretrain.prepare --output=DIR --dataset=sotu_text`,"
        f" or download OLMo's, and set --config.{flag}.root=DIR"
    )
