"""A writer of one split of token files, in parts that survive an interruption.

A finished part leaves a small `part-00000.json` beside it. When the dataset is prepared again, the
documents of such parts are hashed, to be sure that they are the same, but not tokenized.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import checked, read_object
from jaxpretrain.data.prepare.documents import Document
from jaxpretrain.data.token_files.manifest import File, Split
from jaxpretrain.storage.files import TEMPORARY, complete, unfinished, write_atomically

_DELETE_PART = "delete it, and this part is written again"


@dataclass(frozen=True)
class Part:
    """The content of `part-00000.json`; the last four count from the beginning of the split."""

    spec_sha256: str
    file: File
    num_documents: int
    num_bytes: int
    content_sha256: str
    byte_exact: bool


class SplitWriter:
    """A writer of documents to parts, each of which ends with the document that fills it."""

    def __init__(
        self, directory: Path, split: str, spec_sha256: str, dtype: np.dtype, part_tokens: int
    ):
        self._directory = directory
        self._spec = spec_sha256
        self._dtype = dtype.newbyteorder("<")
        self._part_tokens = part_tokens
        self._content = hashlib.sha256()
        self.num_documents = 0
        self._num_bytes = 0
        self.byte_exact = True
        self._open: BinaryIO | None = None
        self._part_content = hashlib.sha256()
        self._folder = directory / split
        self._folder.mkdir(exist_ok=True)
        for left_over in self._folder.glob(f"*{TEMPORARY}*"):
            left_over.unlink()
        self.parts = self._finished_parts()
        self._to_skip = {part.num_documents: part for part in self.parts}
        self.num_finished = self.parts[-1].num_documents if self.parts else 0
        """Number of documents in finished parts."""

    def skip(self, document: Document) -> bool:
        """Returns true where a finished part holds this, the next document; else add it."""
        if self.num_documents >= self.num_finished:
            return False
        self._count(document)
        part = self._to_skip.get(self.num_documents)
        if part:
            self.byte_exact = part.byte_exact
            if part.content_sha256 != self._content.hexdigest():
                self._raise_changed()
        return True

    def add(self, document: Document, tokens: np.ndarray, byte_exact: bool) -> None:
        """Appends the document's tokens, which end with the EOS."""
        if self._open is None:
            self._open = unfinished(self._path(len(self.parts), "npy")).open("wb")
            self._part_content = hashlib.sha256()
        data = tokens.astype(self._dtype).tobytes()
        self._open.write(data)
        self._part_content.update(data)
        self._count(document)
        self.byte_exact &= byte_exact
        if self._open.tell() >= self._part_tokens * self._dtype.itemsize:
            self._finish_part(self._open)

    def finish(self) -> Split:
        """Ends the last part and returns the contents of the split."""
        if self.num_documents < self.num_finished:
            self._raise_changed()
        if self._open is not None:
            self._finish_part(self._open)
        files = tuple(part.file for part in self.parts)
        num_tokens = sum(file.num_tokens for file in files)
        content = self._content.hexdigest()
        return Split(self.num_documents, num_tokens, self._num_bytes, content, files)

    def discard(self) -> None:
        """Deletes the part in progress; does nothing after `finish`."""
        if self._open is not None:
            self._open.close()
            Path(self._open.name).unlink(missing_ok=True)

    def remove_sidecars(self) -> None:
        """Deletes the files beside the parts, once the manifest has their content."""
        for number in range(len(self.parts)):
            self._path(number, "json").unlink(missing_ok=True)

    def _count(self, document: Document) -> None:
        self._content.update(hashlib.sha256(document.content).digest())
        self.num_documents += 1
        self._num_bytes += len(document.content)

    def _finish_part(self, file: BinaryIO) -> None:
        path, num_bytes = self._path(len(self.parts), "npy"), file.tell()
        complete(file, path)
        self._open = None
        name = path.relative_to(self._directory).as_posix()
        num_tokens = num_bytes // self._dtype.itemsize
        part = Part(
            spec_sha256=self._spec,
            file=File(name, num_tokens, num_bytes, self._part_content.hexdigest()),
            num_documents=self.num_documents,
            num_bytes=self._num_bytes,
            content_sha256=self._content.hexdigest(),
            byte_exact=self.byte_exact,
        )
        write_atomically(self._path(len(self.parts), "json"), json.dumps(asdict(part)))
        self.parts.append(part)

    def _path(self, number: int, suffix: str) -> Path:
        return self._folder / f"part-{number:05d}.{suffix}"

    def _finished_parts(self) -> list[Part]:
        parts = []
        while (path := self._path(len(parts), "json")).exists():
            part = checked(Part, read_object(path, _DELETE_PART), path)
            if part.spec_sha256 != self._spec:
                raise InputError(f"{path}: belongs to another dataset; delete {self._directory}")
            file = self._directory / part.file.name
            if not os.path.isfile(file) or file.stat().st_size != part.file.num_bytes:
                break  # this part and all after it are written again
            parts.append(part)
        return parts

    def _raise_changed(self) -> None:
        raise InputError(
            f"{self._folder}: the documents changed since its finished parts were written;"
            f" delete {self._directory} and prepare it again"
        )
