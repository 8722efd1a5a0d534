"""Text to train and evaluate on: one corpus of token files in a global order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import SequenceLength
from jaxpretrain.data.contract import (
    Batch,
    DataConfig,
    EvalSet,
    Spec,
    TrainingData,
    fingerprint,
)
from jaxpretrain.data.order.order import Order, Ordering
from jaxpretrain.data.text.corpus import Corpus, TextSource
from jaxpretrain.data.token_files.masks import InstanceFilter
from jaxpretrain.data.token_files.tokens import TokenFiles, Verify
from jaxpretrain.data.token_files.windows import Windows
from jaxpretrain.storage.files import relative


@dataclass(frozen=True, kw_only=True)
class TextConfig(DataConfig):
    """The fields that all data of text have."""

    seq_len: SequenceLength = 2048
    """Tokens of a sequence. Sequences never cross files; a file's remainder is dropped."""
    instance_filter: InstanceFilter | None = None
    """Leaves sequences that repeat themselves out of the loss; none: takes all."""
    verify: Verify = "auto"
    """How files are checked against the manifest: `hash`, `size`, or by hash up to 1 GB."""

    def example_spec(self) -> Spec:
        """Returns the tokens of a sequence."""
        return {"tokens": ((self.seq_len,), "int32")}

    def units_per_example(self) -> tuple[str, int]:
        """Returns the tokens of a sequence."""
        return "tokens", self.seq_len

    def unhashed(self) -> Self:
        """Returns this config with the sizes of files checked alone."""
        return replace(self, verify="size")

    def mask_spec(self, sources: Iterable[TextSource]) -> Spec:
        """Returns the mask that batches of these sources hold, if they hold one."""
        masked = self.instance_filter is not None or any(
            source.raw and source.raw.label_mask for source in sources
        )
        return {"mask": ((self.seq_len,), "bool")} if masked else {}

    def find_corpus(self, source: TextSource, flag: str, limits: Mapping[str, int]) -> Corpus:
        """Returns the corpus of a source, which errors call by its flag."""
        return Corpus.find(
            source,
            flag=flag,
            seq_len=self.seq_len,
            vocab_size=limits["tokens"],
            verify=self.verify,
        )


@dataclass(frozen=True)
class TextData(TextConfig, TextSource):
    """Sequences of text tokens from one corpus."""

    def extra_spec(self) -> Spec:
        """Returns the mask of the loss where there is one."""
        return self.mask_spec([self])

    def open(self, *, seed: int, limits: Mapping[str, int]) -> "TrainingText":
        """Opens and checks the training split."""
        corpus = self.find_corpus(self, "data", limits)
        training = open_training(corpus, self.order, seed, self.instance_filter)
        check_num_examples(self.num_examples, training.num_examples, str(corpus.root))
        return training

    def open_evals(self, *, limits: Mapping[str, int]) -> list["EvalText"]:
        """Opens the validation split, where there is one."""
        corpus = self.find_corpus(self, "data", limits)
        own = corpus.manifest.name if corpus.manifest else self.validation_split
        held_out = open_held_out(corpus, own or "")
        return [] if held_out is None else [held_out]


@dataclass(frozen=True)
class Place:
    """Where a sample of the run comes from."""

    sample: int
    epoch: int
    """Counted from 0."""
    example: int
    """Index among the sequences of the data, or of the source."""
    file: Path
    """Relative to the root of the data, or of the source."""
    start: int
    """Number of its first token in the file."""
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingText(TrainingData):
    """The training split of a corpus in a global order."""

    files: TokenFiles
    order: Order
    label_masks: Windows | None
    instance_filter: InstanceFilter | None
    ordering: Ordering
    corpus: Corpus

    @property
    def root(self) -> Path:
        """The directory of the files."""
        return self.corpus.root

    @property
    def masks_loss(self) -> bool:
        """True where some tokens may be left out of the loss."""
        return self.label_masks is not None or self.instance_filter is not None

    def batch(self, samples: np.ndarray) -> Batch:
        """Returns {"tokens": int32 [n, seq_len]} of the run's samples, int64 [n].

        Where there are label masks or a filter, also {"mask": bool [n, seq_len]}: the tokens to be
        predicted.
        """
        batch = empty_batch(len(samples), self.files.seq_len, [self])
        self.fill(batch, np.arange(len(samples)), samples)
        return batch

    def fill(self, batch: Batch, rows: np.ndarray, samples: np.ndarray) -> None:
        """Writes the samples, int64 [n], into these rows, int64 [n], of the arrays of a batch."""
        indices = self.order(samples)
        self.files.read_into(batch["tokens"], rows, indices)
        if self.label_masks is not None:
            for position, _, _, mask in self.label_masks.read(indices):
                batch["mask"][rows[position]] = mask
        if self.instance_filter:
            batch["mask"][rows[~self.instance_filter.keeps(batch["tokens"][rows])]] = False

    def locate(self, samples: np.ndarray) -> list[Place]:
        """Where the samples, int64 [n], come from."""
        indices = self.order(samples)
        return [
            Place(sample, sample // self.num_examples, index, relative(path, self.root), start)
            for sample, index, (path, start) in zip(
                samples.tolist(), indices.tolist(), self.files.places(indices), strict=True
            )
        ]

    def find(self, example: int, num_samples: int, source: str | None = None) -> Iterator[int]:
        """The samples among the first `num_samples` that are this example."""
        if source is not None:
            raise InputError(f"the data has no sources, and so no {source!r}: give a number alone")
        if not 0 <= example < len(self.files):
            raise InputError(f"{self.root}: has examples 0 to {len(self.files) - 1}, not {example}")
        return self.order.find(example, num_samples)

    def describe(self) -> str:
        """One line for the start of a run."""
        files = self.files
        line = (
            f"{self.root}: {files.num_tokens:,} tokens in {len(files.files):,} files, an epoch is"
            f" {self.num_examples:,} sequences of {files.seq_len:,} in {self.ordering.describe()}"
        )
        if self.label_masks is not None:
            line += f"; label masks of {self.corpus.label_mask}"
        if self.instance_filter:
            line += "; sequences that repeat themselves are left out of the loss"
        return f"{line}; {files.checked}"


@dataclass(frozen=True, kw_only=True)
class EvalText(EvalSet):
    """The validation split of a corpus, in the order of the files."""

    files: TokenFiles
    token_bytes: np.ndarray | None
    """Bytes of text that each id stands for, int32 [vocab]; None where that is not known."""

    def batch(self, indices: np.ndarray) -> Batch:
        """Returns {"tokens": int32 [n, seq_len]} of the examples at these indices, int64 [n]."""
        return {"tokens": self.files.read(indices)}

    def target_bytes(self, batch: Batch) -> np.ndarray | None:
        """Returns the bytes of text behind each row's predicted tokens (all but the first).

        Together with the loss on those tokens they give exact bits per byte.
        """
        if self.token_bytes is None:
            return None
        return self.token_bytes[batch["tokens"][:, 1:]].sum(axis=1, dtype=np.int64)


def open_training(
    corpus: Corpus, ordering: Ordering, seed: int, instance_filter: InstanceFilter | None
) -> TrainingText:
    """Opens the training split of a corpus, in the order that the seed gives."""
    if instance_filter:
        instance_filter.check()
    files = corpus.open_train(ordering.chunk_size())
    order = ordering.make(len(files), seed)
    identity = [file.identity for file in files.files]
    return TrainingText(
        files=files,
        order=order,
        label_masks=corpus.open_label_masks(files),
        instance_filter=instance_filter,
        ordering=ordering,
        corpus=corpus,
        num_examples=order.epoch_size,
        fingerprint=fingerprint([identity, files.seq_len, *ordering.identity()]),
        notes=files.notes,
        tokenizer_path=corpus.tokenizer_path,
        eos_id=corpus.manifest.eos_id if corpus.manifest else None,
    )


def empty_batch(num_rows: int, seq_len: int, parts: Iterable[TrainingText]) -> Batch:
    """Returns arrays for the samples of these parts to be filled in; a mask is true at first."""
    batch = {"tokens": np.empty((num_rows, seq_len), np.int32)}
    if any(part.masks_loss for part in parts):
        batch["mask"] = np.ones((num_rows, seq_len), bool)
    return batch


def open_held_out(corpus: Corpus, name: str) -> EvalText | None:
    """Opens the validation split of a corpus under that name; None where there is none."""
    files = corpus.open_validation()
    if files is None:
        return None
    return EvalText(
        name=name,
        num_examples=len(files),
        notes=files.notes,
        files=files,
        token_bytes=corpus.token_bytes(),
    )


def check_num_examples(declared: int | None, found: int, where: str) -> None:
    """Raises InputError where a config declares another number of sequences than there are."""
    if declared not in (None, found):
        raise InputError(
            f"data.num_examples declares {declared} sequences, but an epoch of {where} has {found};"
            f" set data.num_examples={found}"
        )
