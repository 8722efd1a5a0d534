"""Documents to prepare: files of text or of rows, also compressed, or any TFDS text dataset."""

import codecs
import glob
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from jaxpretrain.config.errors import InputError
from jaxpretrain.data import tfds_builder
from jaxpretrain.data.folders import Found, find_files, matching_files
from jaxpretrain.data.prepare.columnar import COLUMNAR, read_rows, require_columns
from jaxpretrain.data.prepare.compressed import COMPRESSED, opened
from jaxpretrain.data.prepare.rows import (
    Losses,
    Rows,
    decode,
    divided,
    encode_utf8,
    parse_json_row,
)
from jaxpretrain.storage.files import stat_of
from jaxpretrain.storage.hub import told_of
from jaxpretrain.storage.paths import file_system, is_remote, list_files, parse

LINES = (".jsonl", ".json", ".ndjson")
TEXT = (".txt", ".md", ".rst", ".py")
KINDS = f"{', '.join(LINES + TEXT)}, also compressed ({', '.join(COMPRESSED)}); " + (
    ", ".join(COLUMNAR)
)
"""The kinds of files, in words."""


class Document(NamedTuple):
    """One text and its split."""

    split: str
    text: str
    content: bytes
    """The text in UTF-8."""
    id: object = None
    """The id that is kept; None where none is asked for."""


class Documents(ABC):
    """A corpus: its documents in a fixed order, the same each time it is iterated over."""

    num_documents: int | None = None
    """Number of documents, where it is known beforehand."""
    notes: tuple[str, ...] = ()
    """Lines about what was found when the documents were opened."""
    identity: dict[str, object]
    """A value, JSON-like, that only the same documents have."""
    splits: tuple[str, ...]
    """All splits that documents may belong to."""
    rows: Rows = Rows()

    @abstractmethod
    def read(self, losses: Losses) -> Iterator[Document]:
        """Yields the documents, which are not empty; tells what is left out."""

    def __iter__(self) -> Iterator[Document]:
        yield from self.read(Losses(self.rows.max_undecodable))

    def _documents(
        self, row: Mapping[str, object], text_key: str, place: str, losses: Losses
    ) -> Iterator[tuple[str, bytes, object]]:
        """Yields (text, text in UTF-8, id) of the documents of a row."""
        try:
            if not self.rows.passes(row, place):
                losses.add("filtered", place)
                return
            text, id_ = self.rows.text_of(row, text_key, place), self.rows.id_of(row, place)
            encode_utf8(text, place)
        except InputError as error:
            losses.undecodable(error, place)
            return
        separator = self.rows.document_separator
        for piece in text.split(separator) if separator else [text]:
            piece = piece.strip("\r\n") if separator else piece
            content = piece.encode()
            if self._is_kept(content, place, losses):
                yield piece, content, id_

    def _is_kept(self, content: bytes, place: str, losses: Losses) -> bool:
        limit = self.rows.max_bytes
        if not content:  # it would be an EOS that ends nothing
            losses.add("empty", place)
        elif limit is not None and len(content) > limit:
            losses.add("too_long", place, f"{len(content)} bytes")
        else:
            return True
        return False


class TextFiles(Documents):
    """Documents of files: a `.txt` or `.py` is one document, a line of `.jsonl` or a row is one.

    `patterns` are files, folders (walked) or globs, of this machine, a bucket or the Hugging Face
    hub; files keep the order of the patterns, sorted within each, and count once. Compressed ones
    are read as they are. A byte order mark, which some systems write first, is no text.
    """

    def __init__(
        self,
        patterns: tuple[str, ...],
        text_key: str,
        validation_fraction: float,
        rows: Rows = Rows(),  # noqa: B008
    ):
        self._text_key = text_key
        self._validation_fraction = validation_fraction
        self.rows = rows
        found = [_find(pattern) for pattern in patterns]
        stamps: dict[Path, list[object]] = {}
        for paths, _ in found:
            for path, stamp in paths.items():
                stamps.setdefault(path, stamp)
        self.paths = list(stamps)
        self.notes = tuple(line for _, notes in found for line in notes)
        self.identity = {"files": [[str(path), *stamp] for path, stamp in stamps.items()]}
        self.splits = ("train", "validation") if validation_fraction else ("train",)

    def read(self, losses: Losses) -> Iterator[Document]:
        """Yields the documents, which are not empty; tells what is left out."""
        for path in self.paths:
            with told_of(path):
                for text, content, id_ in self._read_file(path, losses):
                    yield Document(_split(content, self._validation_fraction), text, content, id_)

    def _read_file(self, path: Path, losses: Losses) -> Iterator[tuple[str, bytes, object]]:
        kind, columns = _kind(path), self.rows.columns(self._text_key)
        if kind in COLUMNAR:
            for number, row in enumerate(read_rows(path, columns), 1):
                yield from self._documents(row, self._text_key, f"{path}:{number}", losses)
            return
        with opened(path) as file:
            if kind in TEXT:
                yield from self._read_text(cast(BinaryIO, file), path, losses)
                return
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                try:
                    text = decode(line.removeprefix(codecs.BOM_UTF8), place)
                    row = parse_json_row(text, place)
                except InputError as error:
                    losses.undecodable(error, place)
                    continue
                yield from self._documents(row, self._text_key, place, losses)

    def _read_text(
        self, file: BinaryIO, path: Path, losses: Losses
    ) -> Iterator[tuple[str, bytes, object]]:
        if self.rows.parts or self.rows.where or self.rows.id_key:
            raise InputError(
                f"{path}: is text without columns, which --template, --where and --id_key name;"
                " give files of rows"
            )
        separator = self.rows.document_separator
        pieces = divided(file, separator.encode()) if separator else [file.read()]
        for number, piece in enumerate(pieces, 1):
            place = f"{path}#{number}" if separator else str(path)
            content = piece.removeprefix(codecs.BOM_UTF8) if number == 1 else piece
            content = content.strip(b"\r\n") if separator else content
            if not self._is_kept(content, place, losses):
                continue
            try:
                yield decode(content, place), content, None
            except InputError as error:
                losses.undecodable(error, place)


def _find(pattern: str) -> tuple[dict[Path, list[object]], tuple[str, ...]]:
    """Returns the files of a pattern, each with its size and its time or hash, and notes."""
    path = parse(pattern, is_only_read=True)
    if is_remote(path):
        with told_of(path):
            return _find_remote(path), ()
    paths, notes = _find_local(path, pattern)
    stats = [(path, stat_of(path)) for path in paths]
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats}, notes


def _find_remote(path: Path) -> dict[Path, list[object]]:
    if glob.has_magic(str(path)):
        listed = file_system(path).glob(str(path), detail=True)
        scheme = str(path).partition("://")[0]
        files = {
            parse(f"{scheme}://{name}", is_only_read=True): about
            for name, about in sorted(listed.items())
            if about["type"] == "file"
        }
    else:
        files = list_files(path)
    found = {
        file: [about["size"], str(about.get("mtime") or about.get("blob_id") or "")]
        for file, about in files.items()
        if _kind(file)
    }
    if not found:
        raise InputError(f"{path}: no such file of a known kind; known are {KINDS}")
    return found


def _find_local(path: Path, pattern: str) -> Found:
    if path.is_dir():
        return find_files(
            path,
            lambda file: _kind(file) is not None,
            what=f"text files ({KINDS})",
            if_none="convert them",
            if_few=f"name the kind that is meant, as in --files='{path}/**/*.jsonl'",
        )
    matches = [path] if path.is_file() else matching_files(str(path))
    if not matches:
        raise InputError(f"{pattern}: no such file")
    for match in matches:
        if not _kind(match):
            raise InputError(f"{match}: unknown kind of file; known are {KINDS}")
    return matches, ()


def _kind(path: Path) -> str | None:
    """Returns the suffix of a file without that of its compression; None where it is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COLUMNAR:  # which compress themselves
        return suffixes[-1]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in LINES + TEXT else None


def _split(content: bytes, validation_fraction: float) -> str:
    """Returns a split by a hash of the content, so that adding documents moves none."""
    number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
    return "validation" if number < validation_fraction * 2**64 else "train"


class TfdsDocuments(Documents):
    """Documents of a TFDS dataset through `tfds.data_source`, with the dataset's own splits.

    A dataset with nothing but a train split gives `validation_fraction` of it to validation.
    """

    def __init__(
        self,
        dataset: str,
        data_dir: str | None,
        text_key: str,
        validation_fraction: float,
        download: bool,
        rows: Rows = Rows(),  # noqa: B008
    ):
        self._builder = tfds_builder.prepared_builder(
            tfds_builder.TfdsName.parse(dataset),
            data_dir=data_dir,
            download=download,
            flag="--",
            instead="For your own text give --files=a.jsonl,b.txt",
        )
        info = self._builder.info
        self.name = info.full_name
        self.rows = rows
        features = sorted(
            tfds_builder.features_of(self._builder)
        )  # as a dataset is read back, in any order
        require_columns(dataset, rows.columns(text_key), features, "feature")
        self._text_key = text_key
        self._own = [split for split in ("train", "validation", "test") if split in info.splits]
        if not self._own:
            raise InputError(
                f"{dataset}: has none of the splits train, validation and test, only"
                f" {', '.join(info.splits)}"
            )
        self._validation_fraction = validation_fraction if self._own == ["train"] else 0.0
        counts = {split: info.splits[split].num_examples for split in self._own}
        self.num_documents = sum(counts.values())
        self.identity = {"dataset": self.name, "splits": counts}
        self.splits = ("train", "validation") if self._validation_fraction else tuple(self._own)

    def read(self, losses: Losses) -> Iterator[Document]:
        """Yields the documents, which are not empty; tells what is left out."""
        for own in self._own:
            source = tfds_builder.open_data_source(self._builder, own)
            for index in range(len(source)):
                row = source[index]
                place, split = f"{self.name}, {own} example {index}", own
                if not self.rows.parts and not isinstance(row[self._text_key], bytes):
                    raise InputError(f"{place}: feature {self._text_key!r} is not text")
                for text, content, id_ in self._documents(row, self._text_key, place, losses):
                    if self._validation_fraction:
                        split = _split(content, self._validation_fraction)
                    yield Document(split, text, content, id_)
