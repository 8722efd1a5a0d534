"""A corpus of token files: how it is named in a config, found, checked and opened.

It is a directory that `prepare` made, with a manifest, or one of OLMo's, with raw token ids.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PlaceText
from jaxpretrain.config.schema import Mark
from jaxpretrain.data.folders import Found, find_files, read_list
from jaxpretrain.data.prepare.prepare_text import UNFINISHED, PrepareText, cache_name, prepare_text
from jaxpretrain.data.token_files.manifest import MANIFEST, Dtype, Manifest, load_manifest
from jaxpretrain.data.token_files.tokenizer import read_tokenizer, token_bytes
from jaxpretrain.data.token_files.tokens import TokenFiles, Verify, open_raw, open_split
from jaxpretrain.storage.copies import local_copy
from jaxpretrain.storage.files import cache_dir
from jaxpretrain.storage.paths import is_remote, parse

TOKENS = ".npy"
"""The suffix of token files."""


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
    """Directory of token files: one that `prepare` made, or OLMo's raw .npy files."""
    prepare: PrepareText | None = None
    """The text that is prepared, once, in the cache directory, where `root` is none."""
    train_split: Annotated[str, Mark.SAME_SCORES] = "train"
    """Split, or subdirectory of raw files, to train on."""
    validation_split: str | None = "validation"
    """Split, or subdirectory of raw files, to evaluate on; none: there is no evaluation."""
    raw: RawTokens | None = None
    """Type of ids in files without a manifest, and masks; none: uint16, checked by a sample."""
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
        if split is None or (self.manifest is None and not (self.root / split).is_dir()):
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
            paths, notes = self._raw_paths(split)
            raw = self.source.raw or RawTokens()
            flag = None if raw.trust_dtype else f"{self.flag}.raw=raw_tokens and {self.flag}.raw"
            files = open_raw(self.root, paths, dtype=raw.dtype, flag=flag, notes=notes, **sizes)
        if not len(files):
            raise InputError(
                f"{self.root}: split {split} has {files.num_tokens} tokens in {len(files.files)}"
                f" files, not one sequence of {self.seq_len}; {if_short}"
            )
        return files

    def _raw_paths(self, split: str) -> Found:
        source = self.source
        if source.file_list and split == source.train_split:
            return [self.root / name for name in _listed(source, self.flag)], ()
        names = [name for name in (source.train_split, source.validation_split) if name]
        # Without such folders all files are for training; with them, only those of the split.
        divided = any((self.root / name).is_dir() for name in names)
        folder = self.root / split if divided else self.root
        if not folder.is_dir():
            raise InputError(f"{folder}: holds no token files; {_how_to_get(self.flag)}")
        return find_files(
            folder,
            lambda path: path.suffix == TOKENS,
            what=f"token files (*{TOKENS})",
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
        return name.endswith(TOKENS) and (listed is None or name in listed or bool(is_held_out))

    return local_copy(root, is_wanted, hashes)


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
