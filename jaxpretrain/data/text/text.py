"""Data of text: one corpus of token files in a global order."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import SequenceLength
from jaxpretrain.config.schema import Mark
from jaxpretrain.data.contract import Batch, DataConfig, EvalSet, Spec, TrainingData, fingerprint
from jaxpretrain.data.order.order import Order, Ordering
from jaxpretrain.data.text.corpus import Corpus, TextSource
from jaxpretrain.data.token_files.masks import InstanceFilter, open_label_masks
from jaxpretrain.data.token_files.tokens import TokenFiles, Verify
from jaxpretrain.display.wording import count_of
from jaxpretrain.storage.files import relative
from jaxpretrain.storage.paths import parse


@dataclass(frozen=True, kw_only=True)
class TextConfig(DataConfig):
    """The config of any data of text."""

    seq_len: Annotated[SequenceLength, Mark.SAMPLE_ORDER] = 2048
    """Tokens of a sequence. Sequences never cross files; a file's remainder is dropped."""
    instance_filter: Annotated[InstanceFilter | None, Mark.SAME_SCORES] = None
    """Leaves sequences that repeat themselves out of the loss; none: takes all."""
    verify: Annotated[Verify, Mark.NO_EFFECT, Mark.SAME_SCORES] = "auto"
    """Check of the files against the manifest: by `hash`, by `size`, or by hash up to 1 GB."""

    def example_spec(self) -> Spec:
        """Returns the tokens of a sequence."""
        return {"tokens": ((self.seq_len,), "int32")}

    def units_per_example(self) -> tuple[str, int]:
        """Returns the tokens of a sequence."""
        return "tokens", self.seq_len

    def unhashed(self) -> Self:
        """Returns this config with files checked by their sizes alone."""
        return replace(self, verify="size")

    def extra_spec(self) -> Spec:
        """Returns the mask of the loss where there is one."""
        masks = (source.label_mask for source in self.text_sources())
        is_masked = self.instance_filter is not None or any(masks)
        return {"mask": ((self.seq_len,), "bool")} if is_masked else {}

    @abstractmethod
    def text_sources(self) -> list[TextSource]:
        """Returns the corpora that the data is made of."""

    def find_corpus(self, source: TextSource, flag: str, limits: Mapping[str, int]) -> Corpus:
        """Returns the corpus of a source, which errors call by its flag."""
        vocab_size = limits["tokens"]
        return Corpus.find(source, flag, self.seq_len, vocab_size, self.verify)


@dataclass(frozen=True)
class TextData(TextConfig, TextSource):
    """Sequences of text tokens from one corpus."""

    def text_sources(self) -> list[TextSource]:
        """Returns the one corpus."""
        return [self]

    def open(self, *, seed: int, limits: Mapping[str, int]) -> "TrainingText":
        """Opens and checks the training split."""
        corpus = self.find_corpus(self, "data", limits)
        training = open_training(corpus, self.order, seed, self.instance_filter)
        self.check_num_examples(training.num_examples, "sequences", corpus.root)
        return training

    def open_evals(self, *, limits: Mapping[str, int]) -> list["EvalText"]:
        """Opens the validation split, where there is one, under its name in the manifest."""
        corpus = self.find_corpus(self, "data", limits)
        own = corpus.manifest.name if corpus.manifest else self.validation_split
        return open_held_out(corpus, own or "")


@dataclass(frozen=True)
class SequencePlace:
    """The place of one sequence of a batch: in the run, in the data and in its file."""

    sample: int
    """Number of the sample in the run, from 0."""
    source: str | None
    """Name of its source in a mixture."""
    epoch: int
    """Number of its epoch in the data, or in the source, from 0."""
    example: int
    """Index of the sequence in the data, or in the source."""
    file: str
    """Path relative to the root of the data, or of the source."""
    tokens: tuple[int, int]
    """First token in the file, and the one after the last."""
    documents: list[tuple[int, int]] | None = None
    """Part of each document within the row, as `tokens`; None where the EOS is not known."""
    num_masked: int = 0
    """Number of tokens that are left out of the loss."""
    text: str | None = None
    """Text of the first tokens; None without a tokenizer."""


class TrainingSequences(TrainingData):
    """Opened training data of which each sequence can be found in its file."""

    @abstractmethod
    def locate(self, samples: np.ndarray) -> list[SequencePlace]:
        """Returns the places that the samples, int64 [n], come from."""

    @abstractmethod
    def find(self, example: int, num_samples: int, source: str | None = None) -> Iterator[int]:
        """Yields the samples among the first `num_samples` that are this example of a source."""


@dataclass(frozen=True, kw_only=True)
class TrainingText(TrainingSequences):
    """The training split of a corpus in a global order."""

    corpus: Corpus
    files: TokenFiles
    ordering: Ordering
    order: Order
    label_masks: TokenFiles | None
    instance_filter: InstanceFilter | None

    def batch(self, samples: np.ndarray) -> Batch:
        """Returns {"tokens": int32 [n, seq_len]} of the run's samples, int64 [n].

        With label masks or a filter, also {"mask": bool [n, seq_len]}: the tokens to be predicted.
        """
        batch = empty_batch(len(samples), self.files.seq_len, [self])
        self.fill(batch, np.arange(len(samples)), samples)
        return batch

    def fill(self, batch: Batch, rows: np.ndarray, samples: np.ndarray) -> None:
        """Writes the samples, int64 [n], into these rows, int64 [n], of the arrays of a batch."""
        indices = self.order(samples)
        self.files.read_into(batch["tokens"], rows, indices)
        if self.label_masks is not None:
            batch["mask"][rows] = self.label_masks.read(indices)
        if self.instance_filter:
            batch["mask"][rows[~self.instance_filter.keeps(batch["tokens"][rows])]] = False

    def locate(self, samples: np.ndarray) -> list[SequencePlace]:
        """Returns the places that the samples, int64 [n], come from."""
        indices, root, seq_len = self.order(samples), self.corpus.root, self.files.seq_len
        return [
            SequencePlace(
                sample=sample,
                source=None,
                epoch=sample // self.num_examples,
                example=index,
                file=str(relative(path, root)),
                tokens=(start, start + seq_len),
            )
            for sample, index, (path, start) in zip(
                samples.tolist(), indices.tolist(), self.files.places(indices), strict=True
            )
        ]

    def find(self, example: int, num_samples: int, source: str | None = None) -> Iterator[int]:
        """Yields the samples among the first `num_samples` that are this example."""
        if source is not None:
            raise InputError(f"the data has no sources, and so no {source!r}: give a number alone")
        if not 0 <= example < len(self.files):
            last, root = len(self.files) - 1, self.corpus.root
            raise InputError(f"{root}: has examples 0 to {last}, not {example}")
        return self.order.find(example, num_samples)

    def describe(self) -> str:
        """Returns the size of the data, its order and masks, and how it was checked."""
        files, root = self.files, self.corpus.root
        count = count_of(len(files.files), "file")
        line = (
            f"{root}: {files.num_tokens:,} tokens in {count}, an epoch is {self.num_examples:,}"
            f" sequences of {files.seq_len:,} in {self.ordering.describe()}"
        )
        if self.label_masks is not None:
            line += f"; label masks of {self.corpus.source.label_mask}"
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
        """Returns the bytes of text behind each row's predicted tokens, all but the first."""
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
    masks = corpus.source.label_mask
    label_masks = None
    if masks:
        folder = parse(masks, f"{corpus.flag}.raw.label_mask")
        label_masks = open_label_masks(folder, corpus.root, files)
    return TrainingText(
        corpus=corpus,
        files=files,
        ordering=ordering,
        order=order,
        label_masks=label_masks,
        instance_filter=instance_filter,
        num_examples=order.epoch_size,
        fingerprint=fingerprint([identity, files.seq_len, *ordering.identity()]),
        notes=files.notes,
        tokenizer_path=corpus.tokenizer_path,
        eos_id=corpus.eos_id(),
    )


def empty_batch(num_rows: int, seq_len: int, parts: Iterable[TrainingText]) -> Batch:
    """Returns arrays for the samples of these parts to be filled in; a mask is true at first."""
    batch = {"tokens": np.empty((num_rows, seq_len), np.int32)}
    if any(part.label_masks is not None or part.instance_filter is not None for part in parts):
        batch["mask"] = np.ones((num_rows, seq_len), bool)
    return batch


def open_held_out(corpus: Corpus, name: str) -> list[EvalText]:
    """Opens the validation split of a corpus under that name, where there is one."""
    files = corpus.open_validation()
    if files is None:
        return []
    sizes = {"num_examples": len(files), "token_bytes": corpus.token_bytes()}
    return [EvalText(name=name, notes=files.notes, files=files, **sizes)]
