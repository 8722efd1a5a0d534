"""Documents to prepare: text files or JSON lines, also compressed, or any TFDS text dataset."""

import codecs
import gzip
import hashlib
import io
import json
import lzma
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, NamedTuple, cast

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.data import tfds_builder
from jaxpretrain.data.folders import Found, find_files, matching_files
from jaxpretrain.storage.files import stat_of

LINES = (".jsonl", ".json", ".ndjson")
TEXT = (".txt", ".md", ".rst", ".py")
COMPRESSED = (".gz", ".xz", ".zst")

_JSON_KINDS = {
    **{type(None): "null", bool: "true or false", int: "a number", float: "a number"},
    **{str: "a text", list: "a list", dict: "an object"},
}


class Document(NamedTuple):
    """One text and its split."""

    split: str
    text: str
    content: bytes
    """The text in UTF-8."""


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

    @abstractmethod
    def __iter__(self) -> Iterator[Document]:
        """Yields the documents. Raises InputError for one that is not text."""


class TextFiles(Documents):
    """Documents of text files: a `.txt` or `.py` is one document, a line of `.jsonl` is one.

    `patterns` are files, folders (walked) or globs; files keep the order of the patterns, sorted
    within each, and count once. Compressed ones (.gz, .xz, .zst) are read as they are. A byte order
    mark, which some systems write first, is no text.
    """

    def __init__(self, patterns: tuple[str, ...], text_key: str, validation_fraction: float):
        self._text_key = text_key
        self._validation_fraction = validation_fraction
        found = [_find(pattern) for pattern in patterns]
        self.paths = list(dict.fromkeys(path for paths, _ in found for path in paths))
        self.notes = tuple(line for _, notes in found for line in notes)
        stats = [(path.as_posix(), stat_of(path)) for path in self.paths]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        self.identity = {"files": files}
        self.splits = ("train", "validation") if validation_fraction else ("train",)

    def __iter__(self) -> Iterator[Document]:
        for path in self.paths:
            for place, text in _read(path, self._text_key):
                content = _utf8(text, place)
                yield Document(_split(content, self._validation_fraction), text, content)


def _find(pattern: str) -> Found:
    path = Path(pattern).expanduser()
    kinds = f"{', '.join(LINES + TEXT)}, also compressed ({', '.join(COMPRESSED)})"
    if path.is_dir():
        return find_files(
            path,
            lambda file: _kind(file) is not None,
            what=f"text files ({kinds})",
            if_none="convert them",
            if_few=f"name the kind that is meant, as in --files='{path}/**/*.jsonl'",
        )
    matches = [path] if path.is_file() else matching_files(str(path))
    if not matches:
        raise InputError(f"{pattern}: no such file")
    for match in matches:
        if not _kind(match):
            raise InputError(f"{match}: unknown kind of file; known are {kinds}")
    return matches, ()


def _kind(path: Path) -> str | None:
    """Returns the suffix of a file without that of its compression; None where it is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in LINES + TEXT else None


def _read(path: Path, text_key: str) -> Iterator[tuple[str, str]]:
    """Yields (place, text): the place is for messages, `path` or `path:line`."""

    def decoded(content: bytes, place: str) -> str:
        return _decode(content.removeprefix(codecs.BOM_UTF8), place)

    with opened(path) as file:
        if _kind(path) in TEXT:
            yield str(path), decoded(file.read(), str(path))
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _text_of(decoded(line, place), text_key, place)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file and gives its decompressed content; InputError where it is damaged."""
    openers = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}
    try:
        with openers.get(path.suffix.lower(), open)(path, "rb") as file:
            yield cast(IO[bytes], file)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: is damaged ({error})") from None


def _open_zst(path: Path, _mode: str) -> io.BufferedReader:
    try:
        import zstandard
    except ImportError:
        raise InputError(f"{path}: reading it needs `pip install zstandard`") from None
    return io.BufferedReader(_Pieces(_frames(path, zstandard)), 2**17)


def _frames(path: Path, zstandard: ModuleType) -> Iterator[bytes]:
    """Yields the content of all frames of a .zst file.

    The package's own reader stops after the first frame, and takes a file that was cut for one
    that has ended, both without an error.
    """
    decompressor, frame = zstandard.ZstdDecompressor(), None
    with path.open("rb") as file:
        while data := file.read(2**17):
            while data:
                frame = frame or decompressor.decompressobj()
                try:
                    yield frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise EOFError(str(error)) from None
                data = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = None
    if frame is not None:
        raise EOFError("the compressed file ended early")


class _Pieces(io.RawIOBase):
    """A file with the content of these pieces."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces = pieces
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._ready:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._ready = memoryview(piece)
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _text_of(line: str, text_key: str, place: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: is not a line of JSON ({error})") from None
    if not isinstance(record, dict):
        kind = _JSON_KINDS[type(record)]
        raise InputError(f"{place}: is {kind}, not an object with a text under {text_key!r}")
    if text_key not in record:
        raise InputError(
            f"{place}: has no text under the key {text_key!r} (keys: {', '.join(record)}); set"
            " --text_key"
        )
    text = record[text_key]
    if not isinstance(text, str):
        raise InputError(
            f"{place}: has {_JSON_KINDS[type(text)]} under the key {text_key!r}, not a text; leave"
            ' the line out, or write "", which is skipped'
        )
    return text


def _decode(content: bytes, place: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: is not UTF-8 (byte {error.start}: {error.reason})") from None


def _utf8(text: str, place: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which is no character
        raise InputError(f"{place}: holds half a surrogate pair, which is not text") from None


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
        features = sorted(
            tfds_builder.features_of(self._builder)
        )  # as a dataset is read back, in any order
        if text_key not in features:
            raise InputError(
                f"{dataset}: has no feature {text_key!r} (it has {', '.join(features)});"
                f" set --text_key.{nearest(text_key, features)}"
            )
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

    def __iter__(self) -> Iterator[Document]:
        for own in self._own:
            source = tfds_builder.open_data_source(self._builder, own)
            for index in range(len(source)):
                content = source[index][self._text_key]
                place, split = f"{self.name}, {own} example {index}", own
                if not isinstance(content, bytes):
                    raise InputError(f"{place}: feature {self._text_key!r} is not text")
                if self._validation_fraction:
                    split = _split(content, self._validation_fraction)
                yield Document(split, _decode(content, place), content)
