"""Which rows of a corpus become documents, with what text and what id, and what is left out.

A row is a line of JSON, a row of a parquet or Arrow file, or an example of a TFDS dataset.
"""

import json
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, BinaryIO

from jaxpretrain.config.conditions import Condition, parse_condition
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import NonNegative, Positive
from jaxpretrain.data.prepare.columnar import require_columns
from jaxpretrain.storage.files import complete, unfinished

_KINDS = {
    **{type(None): "null", bool: "true or false", int: "a number", float: "a number"},
    **{str: "a text", list: "a list", dict: "an object"},
}


@dataclass(frozen=True)
class Rows:
    """The choice of documents among rows and texts, beside the key of their text."""

    template: str | None = None
    """Text of a document, with the names of several columns: `{title}\\n{body}`."""
    where: tuple[str, ...] = ()
    """Tests that a row must pass, such as `score>=3` or `lang=en,de`."""
    id_key: str | None = None
    """Column of the ids of documents, which are kept."""
    document_separator: str | None = None
    """Text that stands between the documents of one file or row."""
    bos_token: str | None = None
    """Token that begins every document."""
    max_bytes: Annotated[int, Positive] | None = None
    """Size in bytes of UTF-8 above which a document is left out."""
    max_undecodable: Annotated[int, NonNegative] = 0
    """Number of rows and documents that may be left out since they are not text."""

    def __post_init__(self) -> None:
        self.columns("")  # a bad template or test is refused before any work

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """The tests, parsed; InputError for one that is none."""
        return tuple(map(parse_condition, self.where))

    @cached_property
    def parts(self) -> tuple[tuple[str, str | None], ...]:
        """The texts of the template, each before the column with this name; () without one."""
        if self.template is None:
            return ()
        try:
            found = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise InputError(f"--template={self.template!r}: {error}") from None
        if any(format_spec or conversion for _, _, format_spec, conversion in found):
            raise InputError(f"--template={self.template!r}: write {{NAME}}, and {{{{ for a brace")
        if not any(name for _, name, *_ in found):
            raise InputError(f"--template={self.template!r}: names no column; write {{NAME}}")
        return tuple((before, name) for before, name, *_ in found)

    def columns(self, text_key: str) -> dict[str, str]:
        """Returns the names of all columns that are read, each with a flag that names it."""
        found = {} if self.id_key is None else {self.id_key: "--id_key"}
        found |= {condition.column: "--where" for condition in self.conditions}
        names = {name: "--template" for _, name in self.parts if name}
        return found | (names or {text_key: "--text_key"})

    def passes(self, row: Mapping[str, object], place: str) -> bool:
        """Returns true where all tests hold for a row."""
        return all(
            condition.holds(_plain(_cell(row, condition.column, place, "--where"), place))
            for condition in self.conditions
        )

    def text_of(self, row: Mapping[str, object], text_key: str, place: str) -> str:
        """Returns the text of a row; InputError where it has none."""
        if not self.parts:
            text = _plain(_cell(row, text_key, place, "--text_key"), place)
            if isinstance(text, str | None):
                return text or ""  # null is empty
            kind = _KINDS.get(type(text), "no text")
            raise InputError(f"{place}: has {kind} in the column {text_key!r}, not a text")
        return "".join(
            before + (_filled(row, name, place) if name else "") for before, name in self.parts
        )

    def id_of(self, row: Mapping[str, object], place: str) -> object:
        """Returns the id of the documents of a row, as JSON has it; None where none is kept."""
        if self.id_key is None:
            return None
        found = _plain(_cell(row, self.id_key, place, "--id_key"), place)
        return found if isinstance(found, str | int | float | bool | None) else str(found)


class Losses:
    """The rows and documents that are left out: counted by reason, and listed in a file.

    Rows that fail a test are counted alone: that they are left out is no surprise.
    """

    def __init__(self, max_undecodable: int = 0, listing: Path | None = None):
        self.counts: Counter[str] = Counter()
        self._max_undecodable = max_undecodable
        self._listing = listing
        self._file: BinaryIO | None = None

    def add(self, reason: str, place: str, why: str = "") -> None:
        """Counts what is left out."""
        self.counts[reason] += 1
        if self._listing is None or reason == "filtered":
            return
        if self._file is None:
            self._file = unfinished(self._listing).open("wb")
        line = {"place": place, "reason": reason} | ({"error": why} if why else {})
        self._file.write(json.dumps(line).encode() + b"\n")

    def undecodable(self, error: InputError, place: str) -> None:
        """Counts what is no text. Raises the error where it is one more than are allowed."""
        if self.counts["undecodable"] >= self._max_undecodable:
            if not self._max_undecodable:
                hint = "--max_undecodable=N leaves out up to N such and lists them"
                raise InputError(f"{error}; {hint}")
            raise InputError(
                f"{error}; more than --max_undecodable={self._max_undecodable} are no text"
            )
        self.add("undecodable", place, str(error))

    def finish(self) -> None:
        """Gives the list its name."""
        if self._file is not None and self._listing is not None:
            complete(self._file, self._listing)
            self._file = None

    def discard(self) -> None:
        """Deletes an unfinished list."""
        if self._file is not None:
            self._file.close()
            with suppress(FileNotFoundError):
                Path(self._file.name).unlink()


def parse_json_row(line: str, place: str) -> dict[str, object]:
    """Returns the object in a line of JSON; InputError for another line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: is not a line of JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: is {_KINDS[type(row)]}, not an object with keys")
    return row


def decode(content: bytes, place: str) -> str:
    """Returns the text in UTF-8; InputError where it is none."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: is not UTF-8 (byte {error.start}: {error.reason})") from None


def encode_utf8(text: str, place: str) -> bytes:
    """Returns the text in UTF-8; InputError for half a character."""
    try:
        return text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which is no character
        raise InputError(f"{place}: holds half a surrogate pair, which is not text") from None


def divided(file: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """Yields the pieces of a file between separators; no more than one piece is in memory."""
    piece, searched = bytearray(), 0
    while block := file.read(2**20):
        piece += block
        begin, found = 0, piece.find(separator, searched)
        while found >= 0:
            yield bytes(piece[begin:found])
            begin = found + len(separator)
            found = piece.find(separator, begin)
        del piece[:begin]
        searched = max(len(piece) - len(separator) + 1, 0)
    yield bytes(piece)


def _cell(row: Mapping[str, object], name: str, place: str, flag: str) -> object:
    if name not in row:
        require_columns(place, {name: flag}, row)
    return row[name]


def _plain(value: object, place: str) -> object:
    return decode(value, place) if isinstance(value, bytes) else value


def _filled(row: Mapping[str, object], name: str, place: str) -> str:
    value = _plain(_cell(row, name, place, "--template"), place)
    if isinstance(value, list | dict):
        raise InputError(f"{place}: has {_KINDS[type(value)]} in the column {name!r}, not a text")
    return "" if value is None else str(value)
