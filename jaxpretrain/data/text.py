"""Text to train and evaluate on: token files, the order, and the bytes behind the tokens.

The files are what `python -m jaxpretrain.prepare` writes, with a manifest, or OLMo's own, a
directory of raw token ids.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.cache import cache_dir
from jaxpretrain.data.manifest import MANIFEST, Dtype, Manifest, load_manifest
from jaxpretrain.data.order import Order, OrderName, make_order
from jaxpretrain.data.prepare_text import UNFINISHED, PrepareText, cache_name, prepare_text
from jaxpretrain.data.tokenizer import read_tokenizer, token_bytes
from jaxpretrain.data.tokens import TokenFiles, Verify, open_raw, open_split

HOW_TO_GET = (
    "make token files with `python -m jaxpretrain.prepare --output=DIR --dataset=sotu_text`, or"
    " download OLMo's, and set --config.data.root=DIR"
)


@dataclass(frozen=True)
class TextData:
    """Sequences of text tokens for training and evaluation."""

    root: str | None = None
    """Directory of token files: one that `prepare` made, or OLMo's raw .npy files."""
    prepare: PrepareText | None = None
    """Used when `root` is None: what to prepare, once, in the cache directory."""
    seq_len: int = 2048
    """Tokens of a sequence. Sequences never cross files; a file's remainder is dropped."""
    num_examples: int | None = None
    """Declared number of training sequences, so that epochs resolve without the data; it is
    verified when the data is opened."""
    train_split: str = "train"
    """Split, or subdirectory of raw files, to train on."""
    validation_split: str | None = "validation"
    """Split, or subdirectory of raw files, to evaluate on; None for no evaluation."""
    name: str | None = None
    """Name of the evaluation set in `eval/<name>/...`; by default the dataset's own."""
    dtype: Dtype = "uint16"
    """Type of token ids in files without a manifest: uint16 for OLMo 1, uint32 for OLMo 2."""
    file_list: str | None = None
    """For raw files: a text file with one path a line, relative to `root`, in the order of the
    run's examples; a repeated path counts again. By default the sorted paths."""
    order: OrderName = "olmo"
    """`olmo` is OLMo's own order; `hashed` needs no memory, for a billion sequences or more."""
    verify: Verify = "auto"
    """How files are checked against the manifest: `hash`, `size`, or by hash up to 1 GB."""

    def example_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of one example, known without the data."""
        return {"tokens": ((self.seq_len,), "int32")}

    def units_per_example(self) -> tuple[str, int]:
        """What durations and throughput count, and how many an example holds."""
        return "tokens", self.seq_len

    def open(self, *, seed: int, limits: Mapping[str, int]) -> "TrainingText":
        """The checked training data; token ids must lie below `limits["tokens"]`."""
        vocab_size = limits["tokens"]
        source = _Source.find(self)
        files = source.open(self.train_split, vocab_size)
        if not len(files):
            raise InputError(
                f"{source.root}: split {self.train_split} has {files.num_tokens} tokens in"
                f" {len(files.files)} files, not one sequence of {self.seq_len}; set data.seq_len"
            )
        if self.num_examples not in (None, len(files)):
            raise InputError(
                f"data.num_examples declares {self.num_examples} sequences, but {source.root}"
                f" holds {len(files)} of {self.seq_len} tokens; set data.num_examples={len(files)}"
            )
        return TrainingText(
            files=files,
            order=make_order(self.order, len(files), seed),
            fingerprint=_fingerprint(files, self.order),
            root=source.root,
            tokenizer_path=source.tokenizer_path,
            order_name=self.order,
        )

    def open_evals(self, *, limits: Mapping[str, int]) -> list["EvalText"]:
        """The validation split, or nothing when there is none."""
        vocab_size = limits["tokens"]
        source = _Source.find(self)
        split = self.validation_split
        if split is None or (source.manifest is None and not (source.root / split).is_dir()):
            return []
        files = source.open(split, vocab_size)
        if not len(files):
            raise InputError(
                f"{source.root}: split {split} has {files.num_tokens} tokens, not one sequence of"
                f" {self.seq_len}; lower data.seq_len, or set data.validation_split=none"
            )
        name = self.name or (source.manifest.name if source.manifest else split)
        return [EvalText(name, files, source.token_bytes())]


@dataclass(frozen=True)
class TrainingText:
    """Batches by sample number: which example a sample is depends on the seed alone."""

    files: TokenFiles
    order: Order
    fingerprint: str
    """Changes with the tokens, the sequence length and the order."""
    root: Path
    tokenizer_path: Path | None
    order_name: OrderName

    @property
    def num_examples(self) -> int:
        """Sequences of one epoch."""
        return len(self.files)

    def batch(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """{"tokens": int32 [n, seq_len]} of the run's samples `samples`, int64 [n]."""
        return {"tokens": self.files.read(self.order(samples))}

    def describe(self) -> str:
        """One line for the start of a run."""
        files = self.files
        return (
            f"{self.root}: {files.num_tokens:,} tokens in {len(files.files):,} files, an epoch is"
            f" {self.num_examples:,} sequences of {files.seq_len:,} in {self.order_name} order;"
            f" {files.checked}"
        )


@dataclass(frozen=True)
class EvalText:
    """Evaluation sequences, in the order of the files."""

    name: str
    files: TokenFiles
    token_bytes: np.ndarray | None
    """Bytes of text that each id stands for, int32 [vocab]; None where that is not known."""

    @property
    def num_examples(self) -> int:
        """Sequences of the set."""
        return len(self.files)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """{"tokens": int32 [n, seq_len]} of the examples `indices`, int64 [n]."""
        return {"tokens": self.files.read(indices)}

    def target_bytes(self, batch: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Bytes of text behind each example's predicted tokens (all but the first), int64 [n].

        Together with the loss on those tokens this gives exact bits per byte. None where the
        bytes are not known: raw files, or a tokenizer that is not byte-level.
        """
        if self.token_bytes is None:
            return None
        return self.token_bytes[batch["tokens"][:, 1:]].sum(axis=1, dtype=np.int64)


@dataclass(frozen=True)
class _Source:
    """The directory behind a `TextData`, and its manifest where it has one."""

    config: TextData
    root: Path
    manifest: Manifest | None
    tokenizer_path: Path | None

    @classmethod
    def find(cls, config: TextData) -> "_Source":
        root = data_root(config)
        if not root.is_dir():
            raise InputError(f"{root}: no such directory; {HOW_TO_GET}")
        if not (root / MANIFEST).exists():
            if (root / UNFINISHED).exists():
                raise InputError(
                    f"{root}: is unfinished; run the same `python -m jaxpretrain.prepare` again"
                )
            return cls(config, root, None, None)
        if config.file_list:
            raise InputError(f"{root}: has a manifest, which data.file_list cannot replace")
        manifest = load_manifest(root)
        tokenizer_path = root / manifest.tokenizer.file
        content = read_tokenizer(tokenizer_path).encode()
        if hashlib.sha256(content).hexdigest() != manifest.tokenizer.sha256:
            raise InputError(f"{tokenizer_path}: is not the tokenizer that made these files")
        return cls(config, root, manifest, tokenizer_path)

    def open(self, split: str, vocab_size: int) -> TokenFiles:
        config = self.config
        if config.seq_len < 2:
            raise InputError(f"data.seq_len is {config.seq_len}; a prediction needs 2 tokens")
        if self.manifest:
            return open_split(
                self.root,
                self.manifest,
                split,
                seq_len=config.seq_len,
                vocab_size=vocab_size,
                verify=config.verify,
            )
        if config.verify == "hash":
            raise InputError(f"{self.root}: has no manifest, so no hashes to verify by")
        paths = self._raw_paths(split)
        return open_raw(
            self.root, paths, dtype=config.dtype, seq_len=config.seq_len, vocab_size=vocab_size
        )

    def _raw_paths(self, split: str) -> list[Path]:
        config = self.config
        if config.file_list and split == config.train_split:
            return _listed(Path(config.file_list), self.root)
        folders = {
            name: self.root / name for name in (config.train_split, config.validation_split) if name
        }
        divided = any(folder.is_dir() for folder in folders.values())
        # Without such folders all files are for training; with them, only those of the split.
        folder = folders[split] if divided else self.root
        paths = sorted(folder.rglob("*.npy"))
        if not paths:
            raise InputError(f"{folder}: holds no token files (*.npy); {HOW_TO_GET}")
        return paths

    def token_bytes(self) -> np.ndarray | None:
        if self.manifest is None or self.tokenizer_path is None:
            return None
        if not self.manifest.tokenizer.byte_exact:
            return None
        return token_bytes(read_tokenizer(self.tokenizer_path))


def data_root(config: TextData) -> Path:
    """The directory of the token files; what `prepare` says is made first if it is not there."""
    if config.root is not None:
        return Path(config.root).expanduser()
    if config.prepare is None:
        raise InputError(f"data.root is not set; {HOW_TO_GET}")
    root = cache_dir() / "text" / cache_name(config.prepare)
    if not (root / MANIFEST).exists():
        # In this process, with the tokenizer's own threads: spawned ones would import the
        # caller's main module again.
        prepare_text(config.prepare, root, workers=1, progress=True)
    return root


def _listed(file_list: Path, root: Path) -> list[Path]:
    try:
        lines = file_list.read_text().splitlines()
    except OSError as error:
        raise InputError(f"data.file_list {file_list}: {error.strerror}") from None
    paths = [root / line.strip() for line in lines if line.strip()]
    if not paths:
        raise InputError(f"data.file_list {file_list}: names no files")
    return paths


def _fingerprint(files: TokenFiles, order: OrderName) -> str:
    identity = [[file.identity for file in files.files], files.seq_len, order]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
