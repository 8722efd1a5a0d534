"""Text to token files: `PrepareText` describes them, `prepare_text` makes them.

The output is the same, byte for byte, whatever the number of processes and interruptions:

    <output>/manifest.json              written last: without it the directory is unfinished
    <output>/tokenizer.json
    <output>/<split>/part-00000.npy     raw little-endian ids, an EOS after every document
    <output>/<split>/ids.jsonl          the ids of the documents in order, where they are kept
    <output>/lost.jsonl                 what was left out, and why, where anything was
"""

import hashlib
import importlib.metadata
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.paths import PathText, PlaceText
from jaxpretrain.config.ranges import Between, NumIds, Positive
from jaxpretrain.config.serialize import read_object
from jaxpretrain.data.prepare.documents import Document, Documents, TextFiles, TfdsDocuments
from jaxpretrain.data.prepare.encode import encode
from jaxpretrain.data.prepare.rows import Losses, Rows
from jaxpretrain.data.prepare.token_writer import SplitWriter
from jaxpretrain.data.tfds_builder import TfdsName
from jaxpretrain.data.token_files import manifest as manifests
from jaxpretrain.data.token_files.special import CONFIG, beginning_with, check_special_tokens
from jaxpretrain.data.token_files.tokenizer import (
    read_tokenizer,
    special_id,
    train_bpe,
    vocabulary_size,
)
from jaxpretrain.display.progress import Progress, activity, say
from jaxpretrain.storage.files import complete, only_one_process, unfinished, write_atomically
from jaxpretrain.storage.hub import fetch_file, is_hub_name

TOKENIZER = "tokenizer.json"
UNFINISHED = "unfinished.json"
LOCK = ".lock"
LOST = "lost.jsonl"
IDS = "ids.jsonl"


@dataclass(frozen=True)
class PrepareText:
    """The description of prepared text: a corpus, a tokenizer, and the division into files."""

    dataset: str | None = None
    """TFDS text dataset, `name` or `name:config`; `sotu_text` needs no download."""
    data_dir: PathText | None = None
    """Folder of TFDS datasets; none: the cache folder for our own, TFDS's for its catalogue."""
    files: tuple[PlaceText, ...] = ()
    """Files instead of a dataset: .txt, .md, .rst, .py, .jsonl, compressed, .parquet, .arrow;
    folders and globs, of this machine, a bucket or `hf://datasets/ORG/NAME/...`."""
    text_key: str = "text"
    """Feature of the dataset, key of the JSON lines or column of the files that holds the text."""
    validation_fraction: Annotated[float, Between(0, 1, "[)")] = 0.05
    """Part of the documents held out, by a hash, where the corpus has no splits; 0: none."""
    tokenizer: PathText = "bpe"
    """Path of a tokenizer.json, or of a directory with one; the name of a model on the Hugging Face
    hub; or `bpe`, which trains a byte-level BPE on the train split."""
    vocab_size: NumIds = 8192
    """Size of the vocabulary of a tokenizer that is trained."""
    eos_token: str = "<|endoftext|>"
    """Token that ends every document."""
    name: str | None = None
    """Short name for evaluations; none: the name of the dataset, without `_text`."""
    part_tokens: Annotated[int, Positive] = 2**27
    """Number of tokens after which a new file begins; an interruption loses at most one file."""
    download: bool = False
    """Lets TFDS download a dataset that is not prepared yet, and the hub a tokenizer."""


def prepare_text(
    spec: PrepareText,
    output: Path,
    *,
    workers: int,
    rows: Rows = Rows(),  # noqa: B008
) -> manifests.Manifest:
    """Makes a directory, or goes on with it, and returns its manifest.

    A finished directory of the same spec is left as it is. Notes and the progress go to standard
    error. Raises InputError for anything wrong with the corpus, the tokenizer or the directory.
    """
    documents = _open_documents(spec, rows)
    say(*documents.notes)
    made_from = _made_from(spec, documents.identity, rows)
    key = _sha256(made_from)
    if (output / manifests.MANIFEST).exists():
        return _same_dataset(output, key)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; --output must be a directory")
    output.mkdir(parents=True, exist_ok=True)
    with only_one_process(output / LOCK), ExitStack() as stack:
        if (output / manifests.MANIFEST).exists():  # another process finished it in the meantime
            return _same_dataset(output, key)
        _claim(output, key)
        tokenizer = _make_tokenizer(spec, documents, output)
        writing = _Writing(spec, documents, output, tokenizer, key)
        stack.callback(writing.discard)
        writing.write(workers)
        manifest = writing.finish(made_from)
        (output / UNFINISHED).unlink()
        (output / LOCK).unlink()  # whoever waits for it finds the manifest
    return manifest


class _Writing:
    """The token files of all splits, the ids of documents and the list of what is left out."""

    def __init__(
        self, spec: PrepareText, documents: Documents, output: Path, tokenizer: str, key: str
    ):
        self._spec = spec
        self._documents = documents
        self._output = output
        self._tokenizer = tokenizer
        self._key = key
        self._vocab_size = vocabulary_size(tokenizer)
        self._dtype: manifests.Dtype = "uint16" if self._vocab_size <= 2**16 else "uint32"
        self._eos_id, bos = special_id(tokenizer, spec.eos_token), documents.rows.bos_token
        self._first = [special_id(tokenizer, bos, "begin")] if bos else []
        dtype = np.dtype(self._dtype)
        self._writers = {
            split: SplitWriter(output, split, key, dtype, spec.part_tokens)
            for split in documents.splits
        }
        self._ids: dict[str, BinaryIO] = {}
        if documents.rows.id_key is not None:
            paths = {split: unfinished(output / split / IDS) for split in documents.splits}
            self._ids = {split: path.open("wb") for split, path in paths.items()}
        self._losses = Losses(documents.rows.max_undecodable, output / LOST)

    def write(self, workers: int) -> None:
        """Tokenizes all documents that are not in finished parts; shows how many on a terminal."""
        eos_token, num_spelled, num_bytes = self._spec.eos_token, 0, 0

        def to_encode() -> Iterator[Document]:
            nonlocal num_spelled
            for document in self._documents.read(self._losses):
                num_spelled += eos_token in document.text
                if self._ids:
                    line = json.dumps(document.id, ensure_ascii=False)
                    self._ids[document.split].write(line.encode(errors="replace") + b"\n")
                if not self._writers[document.split].skip(document):
                    yield document

        start, expected = time.perf_counter(), self._documents.num_documents
        with Progress(expected, "documents", only_live=True) as progress:
            encoded = encode(to_encode(), self._output / TOKENIZER, workers)
            for done, (document, tokens, byte_exact) in enumerate(encoded, start=1):
                whole = np.concatenate([self._first, tokens, [self._eos_id]])
                self._writers[document.split].add(document, whole, byte_exact)
                num_bytes += len(document.content)
                seconds = time.perf_counter() - start
                metrics = {"perf/megabytes_per_second": num_bytes / seconds / 1e6}
                if expected is not None:
                    metrics["perf/eta_seconds"] = seconds * max(expected - done, 0) / done
                progress.update(done, metrics)
        self._check_counts(num_spelled)

    def finish(self, made_from: Mapping[str, object]) -> manifests.Manifest:
        """Ends all files and writes the manifest, last."""
        spec, splits = self._spec, {name: w.finish() for name, w in self._writers.items()}
        for split, file in self._ids.items():
            complete(file, self._output / split / IDS)
        self._losses.finish()
        packages = ["tokenizers", *(["tensorflow-datasets"] if spec.dataset else [])]
        versions = {package: importlib.metadata.version(package) for package in packages}
        lost = {"lost": dict(self._losses.counts)} if self._losses.counts else {}
        manifest = manifests.Manifest(
            name=_name(spec),
            tokenizer=manifests.TokenizerFile(
                file=TOKENIZER,
                sha256=hashlib.sha256(self._tokenizer.encode()).hexdigest(),
                byte_exact=all(writer.byte_exact for writer in self._writers.values()),
            ),
            vocab_size=self._vocab_size,
            eos_id=self._eos_id,
            dtype=self._dtype,
            spec_sha256=self._key,
            created_from={**made_from, **lost, "versions": versions},
            splits=splits,
        )
        manifests.save_manifest(manifest, self._output)
        for writer in self._writers.values():
            writer.remove_sidecars()
        return manifest

    def discard(self) -> None:
        """Deletes the files in progress; does nothing after `finish`."""
        for writer in self._writers.values():
            writer.discard()
        self._losses.discard()
        for file in self._ids.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)

    def _check_counts(self, num_spelled: int) -> None:
        counts = {split: writer.num_documents for split, writer in self._writers.items()}
        total, lost = sum(counts.values()), describe_lost(self._losses.counts)
        if not total:
            raise InputError(f"the corpus is empty: it holds no document with any text{lost}")
        for split, count in counts.items():
            if not count:
                raise InputError(
                    f"none of the {total} documents fell into the {split} split; change"
                    " --validation_fraction (0 makes no validation split)"
                )
        if num_spelled:
            eos = self._spec.eos_token
            say(
                f"warning: {num_spelled:,} of {total:,} documents spell {eos!r}, which is learnt as"
                " text and ends no document; if it stands between documents, divide them there:"
                f" --document_separator={shlex.quote(eos)}"
            )


def describe_lost(counts: Mapping[str, int]) -> str:
    """Returns the numbers of what was left out, in brackets; "" where nothing was."""
    listed = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items()]
    return f" (left out: {', '.join(listed)})" if listed else ""


def cache_name(spec: PrepareText) -> str:
    """Returns a directory name for the result of a spec, without opening a TFDS dataset.

    Changed files or another tokenizer give another name; another version of a dataset does not.
    """
    if spec.files:
        identity = TextFiles(spec.files, spec.text_key, spec.validation_fraction).identity
    else:
        identity = {"dataset": spec.dataset, "data_dir": spec.data_dir}
    return f"{_name(spec)}-{_sha256(_made_from(spec, identity))[:12]}"


def _open_documents(spec: PrepareText, rows: Rows) -> Documents:
    if bool(spec.dataset) == bool(spec.files):
        given = "both a dataset and files are" if spec.dataset else "neither a dataset nor files is"
        raise InputError(f"{given} given: choose --dataset=sotu_text or --files=a.jsonl,b.txt")
    if spec.files:
        return TextFiles(spec.files, spec.text_key, spec.validation_fraction, rows)
    name, fraction = spec.dataset or "", spec.validation_fraction
    return TfdsDocuments(name, spec.data_dir, spec.text_key, fraction, spec.download, rows)


def _name(spec: PrepareText) -> str:
    if spec.name or not spec.dataset:
        return spec.name or "text"
    return TfdsName.parse(spec.dataset).name.removesuffix("_text")


def _made_from(
    spec: PrepareText,
    documents: Mapping[str, object],
    rows: Rows = Rows(),  # noqa: B008
) -> dict[str, object]:
    """Returns everything that the output depends on: equal values make equal files."""
    if spec.tokenizer == "bpe":
        tokenizer = f"byte-level BPE of {spec.vocab_size}, trained on train"
    else:
        content = read_tokenizer(_tokenizer_path(spec)).encode()
        tokenizer = f"tokenizer.json, SHA-256 {hashlib.sha256(content).hexdigest()}"
    return {
        **documents,
        "name": _name(spec),
        "text_key": spec.text_key,
        "validation_fraction": spec.validation_fraction,
        "tokenizer": tokenizer,
        "eos_token": spec.eos_token,
        "part_tokens": spec.part_tokens,
        "format_version": manifests.FORMAT_VERSION,
        **({} if rows == Rows() else {"rows": asdict(rows)}),  # older folders have no such key
    }


def _tokenizer_path(spec: PrepareText) -> Path:
    """Returns the path of the tokenizer that is given, which may be the name of one on the hub."""
    path = Path(spec.tokenizer)
    if path.exists() or not is_hub_name(spec.tokenizer):
        return path
    file = fetch_file(spec.tokenizer, TOKENIZER, download=spec.download)
    if file is None:
        how = "it has no tokenizer.json" if spec.download else "--download asks the hub for it"
        raise InputError(f"{spec.tokenizer}: no such tokenizer file here; {how}")
    fetch_file(spec.tokenizer, CONFIG, download=spec.download)  # beside it, where there is one
    return file


def _sha256(value: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _same_dataset(output: Path, key: str) -> manifests.Manifest:
    manifest = manifests.load_manifest(output)
    if manifest.spec_sha256 != key:
        raise InputError(
            f"{output}: holds another dataset, {manifest.name!r}, or one of other options or"
            " files; choose another --output, or delete it"
        )
    return manifest


def _claim(output: Path, key: str) -> None:
    """Marks `output` as ours and unfinished, unless it holds anything else."""
    marker = output / UNFINISHED
    if marker.exists():
        advice = f"choose another --output, or delete {output}"
        if read_object(marker, advice).get("spec_sha256") == key:
            return
        if any(output.glob("*/part-*.json")):
            raise InputError(
                f"{output}: holds unfinished parts of another dataset, or of other options;"
                " choose another --output, or delete it"
            )
        (output / TOKENIZER).unlink(missing_ok=True)
    elif any(path.name != LOCK for path in output.iterdir()):
        raise InputError(
            f"{output}: is not empty and was not made by prepare; choose another --output"
        )
    write_atomically(marker, json.dumps({"spec_sha256": key}))


def _make_tokenizer(spec: PrepareText, documents: Documents, output: Path) -> str:
    """Returns the text of `<output>/tokenizer.json`, which is copied, trained, or there already."""
    path, bos_token = output / TOKENIZER, documents.rows.bos_token
    if path.exists():
        return read_tokenizer(path)
    if spec.tokenizer == "bpe":
        say("training the tokenizer")
        texts = (document.text for document in documents if document.split == "train")
        with activity("training the tokenizer"):
            text = train_bpe(texts, spec.vocab_size, spec.eos_token, bos_token)
        if (num_ids := vocabulary_size(text)) < spec.vocab_size:
            say(
                f"the tokenizer has {num_ids:,} ids, not the {spec.vocab_size:,} of --vocab_size:"
                " the text has no more pieces to merge"
            )
    else:
        given = _tokenizer_path(spec)
        text, folder = read_tokenizer(given), given if given.is_dir() else given.parent
        special_id(text, spec.eos_token)
        say(*check_special_tokens(text, folder, spec.eos_token, bos_token))
    text = beginning_with(text, bos_token)
    write_atomically(path, text)
    return text
