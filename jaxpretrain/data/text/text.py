"""Text to train and evaluate on: one corpus of token files in a global order."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PathText
from jaxpretrain.config.ranges import Positive, SequenceLength
from jaxpretrain.data.order.order import Order, Ordering, OrderName
from jaxpretrain.data.text.corpus import Corpus, TextSource
from jaxpretrain.data.token_files.masks import InstanceFilter
from jaxpretrain.data.token_files.tokens import TokenFiles, Verify
from jaxpretrain.data.token_files.windows import Windows
from jaxpretrain.storage.files import relative


@dataclass(frozen=True)
class TextData(TextSource):
    """Sequences of text tokens for training and evaluation."""

    seq_len: SequenceLength = 2048
    """Tokens of a sequence. Sequences never cross files; a file's remainder is dropped."""
    num_examples: Annotated[int, Positive] | None = None
    """Declared number of sequences of an epoch, so that epochs resolve without the data; it is
    verified when the data is opened. none: the data is counted where a duration is in epochs."""
    name: str | None = None
    """Name of the evaluation set in `eval/<name>/...`; by default the dataset's own."""
    order: OrderName = "olmo"
    """`olmo` and `olmo_core` are what these programs do, bit for bit; `hashed` needs no memory, for
    a billion sequences or more."""
    order_chunk: Annotated[int, Positive] = 1
    """Consecutive sequences of a file that stay together in the order; each file is cut to a whole
    number of them (OLMo-core: the longest sequence length of the run / seq_len)."""
    epoch_multiple: Annotated[int, Positive] = 1
    """An epoch is cut to a multiple of this many sequences. OLMo and OLMo-core begin an epoch with
    a batch: the same with the batch size here."""
    global_indices: PathText | None = None
    """OLMo's `global_indices.npy`, one uint32 a sequence: replaces the order's first epoch."""
    instance_filter: InstanceFilter | None = None
    """Leaves sequences that repeat themselves out of the loss; none: takes all."""
    verify: Verify = "auto"
    """How files are checked against the manifest: `hash`, `size`, or by hash up to 1 GB."""

    def example_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of what the model reads of one example, known without the data."""
        return {"tokens": ((self.seq_len,), "int32")}

    def extra_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of what batches hold beside that: a mask where there is one."""
        return mask_spec(self.seq_len, [self], self.instance_filter)

    def source_names(self) -> tuple[str, ...]:
        """Sources whose losses are told apart: none."""
        return ()

    def units_per_example(self) -> tuple[str, int]:
        """What durations and throughput count, and how many an example holds."""
        return "tokens", self.seq_len

    def open(self, *, seed: int, limits: Mapping[str, int]) -> "TrainingText":
        """The checked training data; token ids must lie below `limits["tokens"]`."""
        ordering = Ordering(self.order, self.order_chunk, self.epoch_multiple, self.global_indices)
        corpus = self._find(limits)
        training = open_training(corpus, ordering, seed, self.instance_filter)
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


@dataclass(frozen=True)
class TrainingText:
    """Batches by sample number: which example a sample is depends on the seed alone."""

    files: TokenFiles
    order: Order
    label_masks: Windows | None
    instance_filter: InstanceFilter | None
    ordering: Ordering
    corpus: Corpus

    num_workers = 0
    """Reading takes no processes."""

    @property
    def num_examples(self) -> int:
        """Sequences of one epoch."""
        return self.order.epoch_size

    @property
    def fingerprint(self) -> str:
        """Changes with the tokens, the sequence length and the order."""
        identity = [file.identity for file in self.files.files]
        content = [identity, self.files.seq_len, *self.ordering.identity()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def root(self) -> Path:
        """The directory of the files."""
        return self.corpus.root

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer of the files, where it is known."""
        return self.corpus.tokenizer_path

    @property
    def eos_id(self) -> int | None:
        """The token that ends each document, where it is known."""
        return self.corpus.manifest.eos_id if self.corpus.manifest else None

    @property
    def masks_loss(self) -> bool:
        """Whether some tokens may be left out of the loss."""
        return self.label_masks is not None or self.instance_filter is not None

    def epochs(self, num_samples: int) -> dict[str, float]:
        """How often the first `num_samples` samples go through the data, as the metric `epochs`."""
        return {"epochs": num_samples / self.num_examples}

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about what was found when the data was opened."""
        return self.files.notes

    def report(self) -> list[str]:
        """What reading found out since the last call: nothing, or it raises."""
        return []

    def batch(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """{"tokens": int32 [n, seq_len]} of the run's samples `samples`, int64 [n].

        Where there are label masks or a filter, also {"mask": bool [n, seq_len]}: the tokens to be
        predicted.
        """
        batch = empty_batch(len(samples), self.files.seq_len, [self])
        self.fill(batch, np.arange(len(samples)), samples)
        return batch

    def fill(self, batch: dict[str, np.ndarray], rows: np.ndarray, samples: np.ndarray) -> None:
        """As `batch`, into the rows `rows`, int64 [n], of the arrays of a batch."""
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
        files, ordering = self.files, self.ordering
        line = (
            f"{self.root}: {files.num_tokens:,} tokens in {len(files.files):,} files, an epoch is"
            f" {self.num_examples:,} sequences of {files.seq_len:,} in {ordering.name} order"
        )
        if ordering.chunk > 1:
            line += f" of {ordering.chunk} at a time"
        if ordering.global_indices:
            line += f", the first as {ordering.global_indices} lists them"
        if self.label_masks is not None:
            line += f"; label masks of {self.corpus.source.label_mask}"
        if self.instance_filter:
            line += "; sequences that repeat themselves are left out of the loss"
        return f"{line}; {files.checked}"


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

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about what was found when the data was opened."""
        return self.files.notes

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


def open_training(
    corpus: Corpus, ordering: Ordering, seed: int, instance_filter: InstanceFilter | None
) -> TrainingText:
    """The training split of a corpus, in the order of that seed."""
    if instance_filter:
        instance_filter.check()
    files = corpus.open_train(ordering.chunk)
    order = ordering.make(len(files), seed)
    masks = corpus.open_label_masks(files)
    return TrainingText(files, order, masks, instance_filter, ordering, corpus)


def mask_spec(
    seq_len: int, sources: Iterable[TextSource], instance_filter: InstanceFilter | None
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of the mask that batches of these sources hold, if they do."""
    masked = instance_filter is not None or any(source.label_mask for source in sources)
    return {"mask": ((seq_len,), "bool")} if masked else {}


def empty_batch(
    num_rows: int, seq_len: int, parts: Iterable[TrainingText]
) -> dict[str, np.ndarray]:
    """Arrays for the samples of these parts to be filled in; a mask is true where none says no."""
    batch = {"tokens": np.empty((num_rows, seq_len), np.int32)}
    if any(part.masks_loss for part in parts):
        batch["mask"] = np.ones((num_rows, seq_len), bool)
    return batch


def open_held_out(corpus: Corpus, name: str) -> EvalText | None:
    """The validation split of a corpus under that name; None when there is none."""
    files = corpus.open_validation()
    return None if files is None else EvalText(name, files, corpus.token_bytes())


def check_num_examples(declared: int | None, found: int, where: str) -> None:
    """Raises InputError when a config declares another number of sequences than there are."""
    if declared not in (None, found):
        raise InputError(
            f"data.num_examples declares {declared} sequences, but an epoch of {where} has {found};"
            f" set data.num_examples={found}"
        )
