"""A corpus of token files: how it is named in a config, found, checked and opened.

The files are those of `python -m jaxpretrain.prepare`, with a manifest, or a directory of OLMo's
own, which are raw token ids.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.schema import Mark
from jaxpretrain.data.folders import Found, find_files, read_list
from jaxpretrain.data.prepare.prepare_text import UNFINISHED, PrepareText, cache_name, prepare_text
from jaxpretrain.data.token_files.manifest import MANIFEST, Dtype, Manifest, load_manifest
from jaxpretrain.data.token_files.masks import open_label_masks
from jaxpretrain.data.token_files.token_sample import TypeFlags
from jaxpretrain.data.token_files.tokenizer import read_tokenizer, token_bytes
from jaxpretrain.data.token_files.tokens import TokenFiles, Verify, open_raw, open_split
from jaxpretrain.data.token_files.windows import Windows
from jaxpretrain.storage.cache import cache_dir

TOKENS = ".npy"
"""The suffix of token files."""


@dataclass(frozen=True)
class RawTokens:
    """The reading of token files without a manifest, and masks beside token files."""

    dtype: Dtype = "uint16"
    """Type of token ids in files without a manifest: uint16 for OLMo 1, uint32 for OLMo 2."""
    trust_dtype: Annotated[bool, Mark.NO_EFFECT] = False
    """Reads raw files as `dtype` even where a sample of their ids looks like another type, which
    may be wrong of files that are mostly padding."""
    label_mask: PathText | None = None
    """Directory with a mask for each token file, of the same name relative to it as the token file
    has to `root`: one byte a token, 0 for tokens that are not to be learnt."""


@dataclass(frozen=True)
class TextSource:
    """The place of a corpus of token files."""

    root: Annotated[PathText | None, Mark.NO_EFFECT] = None
    """Directory of token files: one that `prepare` made, or OLMo's raw .npy files."""
    prepare: PrepareText | None = None
    """The text that is prepared, once, in the cache directory, where `root` is none."""
    train_split: str = "train"
    """Split, or subdirectory of raw files, to train on."""
    validation_split: str | None = "validation"
    """Split, or subdirectory of raw files, to evaluate on; none: there is no evaluation."""
    raw: RawTokens | None = None
    """The type of ids in files without a manifest, and masks. none: uint16 ids, which are checked
    by a sample, and no masks."""
    file_list: PathText | None = None
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
    tokenizer_path: Path | None
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
        manifest = tokenizer_path = None
        if (root / MANIFEST).exists():
            if source.file_list:
                raise InputError(f"{root}: has a manifest, which {flag}.file_list cannot replace")
            manifest = load_manifest(root)
            tokenizer_path = root / manifest.tokenizer.file
            content = read_tokenizer(tokenizer_path).encode()
            if hashlib.sha256(content).hexdigest() != manifest.tokenizer.sha256:
                raise InputError(f"{tokenizer_path}: is not the tokenizer that made these files")
        elif (root / UNFINISHED).exists():
            raise InputError(
                f"{root}: is unfinished; run the same `python -m jaxpretrain.prepare` again"
            )
        return cls(source, flag, root, manifest, tokenizer_path, seq_len, vocab_size, verify)

    def open_train(self, chunk: int = 1) -> TokenFiles:
        """Opens the sequences to train on, at least one; a whole number of chunks of each file."""
        files = self._open(self.source.train_split, chunk)
        if not len(files):
            raise InputError(
                f"{self.root}: split {self.source.train_split} has {files.num_tokens} tokens in"
                f" {len(files.files)} files, not one sequence of {self.seq_len}; set data.seq_len"
            )
        return files

    def open_validation(self) -> TokenFiles | None:
        """Opens the sequences to evaluate on, at least one; None where there is no such split."""
        split = self.source.validation_split
        if split is None or (self.manifest is None and not (self.root / split).is_dir()):
            return None
        files = self._open(split)
        if not len(files):
            raise InputError(
                f"{self.root}: split {split} has {files.num_tokens} tokens, not one sequence of"
                f" {self.seq_len}; lower data.seq_len, or set {self.flag}.validation_split=none"
            )
        return files

    def open_label_masks(self, files: TokenFiles) -> Windows | None:
        """Opens the label masks of the examples of these files; None where there are none."""
        folder = self.source.label_mask
        if folder is None:
            return None
        return open_label_masks(Path(folder).expanduser(), self.root, files)

    def token_bytes(self) -> np.ndarray | None:
        """Returns the bytes of text of each id, int32 [vocab]; None where they are not known."""
        if self.manifest is None or not self.manifest.tokenizer.byte_exact:
            return None
        return token_bytes(read_tokenizer(self.root / self.manifest.tokenizer.file))

    def _open(self, split: str, chunk: int = 1) -> TokenFiles:
        sizes = {"seq_len": self.seq_len, "vocab_size": self.vocab_size, "chunk": chunk}
        if self.manifest:
            return open_split(self.root, self.manifest, split, verify=self.verify, **sizes)
        if self.verify == "hash":
            raise InputError(f"{self.root}: has no manifest, so no hashes to verify by")
        paths, notes = self._raw_paths(split)
        raw, flag = self.source.raw or RawTokens(), f"{self.flag}.raw"
        flags = TypeFlags(
            dtype=f"{flag}=raw_tokens and {flag}.dtype",
            trust=f"{flag}=raw_tokens and {flag}.trust_dtype=true",
        )
        flags = None if raw.trust_dtype else flags
        return open_raw(self.root, paths, dtype=raw.dtype, flags=flags, notes=notes, **sizes)

    def _raw_paths(self, split: str) -> Found:
        source = self.source
        if source.file_list and split == source.train_split:
            flag = f"{self.flag}.file_list {source.file_list}"
            names = read_list(Path(source.file_list), flag)
            return Found([self.root / name for name in names], ())
        folders = {
            name: self.root / name for name in (source.train_split, source.validation_split) if name
        }
        divided = any(folder.is_dir() for folder in folders.values())
        # Without such folders all files are for training; with them, only those of the split.
        folder = folders[split] if divided else self.root
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
        return Path(source.root).expanduser()
    if source.prepare is None:
        raise InputError(f"{flag}.root is not set; {_how_to_get(flag)}")
    root = cache_dir() / "text" / cache_name(source.prepare)
    if not (root / MANIFEST).exists():
        # In this process, with the tokenizer's own threads: spawned ones would import the
        # caller's main module again.
        prepare_text(source.prepare, root, workers=1)
    return root


def _how_to_get(flag: str) -> str:
    return (
        "make token files with `python -m jaxpretrain.prepare --output=DIR --dataset=sotu_text`,"
        f" or download OLMo's, and set --config.{flag}.root=DIR"
    )
