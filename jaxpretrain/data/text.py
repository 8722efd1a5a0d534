"""Text to train and evaluate on: one corpus of token files in a global order."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.corpus import Corpus, TextSource
from jaxpretrain.data.order import Order, OrderName, make_order
from jaxpretrain.data.tokens import TokenFiles, Verify


@dataclass(frozen=True)
class TextData(TextSource):
    """Sequences of text tokens for training and evaluation."""

    seq_len: int = 2048
    """Tokens of a sequence. Sequences never cross files; a file's remainder is dropped."""
    num_examples: int | None = None
    """Declared number of training sequences, so that epochs resolve without the data; it is
    verified when the data is opened."""
    name: str | None = None
    """Name of the evaluation set in `eval/<name>/...`; by default the dataset's own."""
    order: OrderName = "olmo"
    """`olmo` is OLMo's own order; `hashed` needs no memory, for a billion sequences or more."""
    verify: Verify = "auto"
    """How files are checked against the manifest: `hash`, `size`, or by hash up to 1 GB."""

    def example_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of what the model reads of one example, known without the data."""
        return {"tokens": ((self.seq_len,), "int32")}

    def extra_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of what batches hold beside that: nothing."""
        return {}

    def source_names(self) -> tuple[str, ...]:
        """Sources whose losses are told apart: none."""
        return ()

    def units_per_example(self) -> tuple[str, int]:
        """What durations and throughput count, and how many an example holds."""
        return "tokens", self.seq_len

    def open(self, *, seed: int, limits: Mapping[str, int]) -> "TrainingText":
        """The checked training data; token ids must lie below `limits["tokens"]`."""
        corpus = self._find(limits)
        training = open_training(corpus, self.order, seed)
        check_num_examples(self.num_examples, training.num_examples, str(corpus.root))
        return training

    def open_evals(self, *, limits: Mapping[str, int]) -> list["EvalText"]:
        """The validation split, or nothing when there is none."""
        corpus = self._find(limits)
        own = corpus.manifest.name if corpus.manifest else self.validation_split
        held_out = open_held_out(corpus, self.name or own or "")
        return [] if held_out is None else [held_out]

    def _find(self, limits: Mapping[str, int]) -> Corpus:
        return Corpus.find(
            self,
            flag="data",
            seq_len=self.seq_len,
            vocab_size=limits["tokens"],
            verify=self.verify,
        )


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

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of what is mixed: nothing is."""
        return ()

    def epochs(self, num_samples: int) -> dict[str, float]:
        """Source -> epochs of it in the first `num_samples` samples: there are no sources."""
        return {}

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


def open_training(corpus: Corpus, order: OrderName, seed: int) -> TrainingText:
    """The training split of a corpus, in the order of that name and seed."""
    files = corpus.open_train()
    return TrainingText(
        files=files,
        order=make_order(order, len(files), seed),
        fingerprint=_fingerprint(files, order),
        root=corpus.root,
        tokenizer_path=corpus.tokenizer_path,
        order_name=order,
    )


def open_held_out(corpus: Corpus, name: str) -> EvalText | None:
    """The validation split of a corpus under that name; None when there is none."""
    files = corpus.open_validation()
    return None if files is None else EvalText(name, files, corpus.token_bytes())


def check_num_examples(declared: int | None, found: int, where: str) -> None:
    """Raises InputError when a config declares another number of sequences than there are."""
    if declared not in (None, found):
        raise InputError(
            f"data.num_examples declares {declared} sequences, but {where} holds {found};"
            f" set data.num_examples={found}"
        )


def _fingerprint(files: TokenFiles, order: OrderName) -> str:
    identity = [[file.identity for file in files.files], files.seq_len, order]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
