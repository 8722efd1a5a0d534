"""The content of compressed files, as one stream, where a cut file is an error."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, cast

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.prepare.columnar import import_pyarrow

COMPRESSED = (".gz", ".xz", ".zst", ".bz2", ".lz4")
"""The suffixes of files that are decompressed when they are read."""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file and gives its decompressed content; InputError where it is damaged."""
    openers = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    openers |= {".zst": _open_zst, ".lz4": _open_lz4}
    try:
        with path.open("rb") as raw:
            opener = openers.get(path.suffix.lower())
            if opener is None:
                yield raw
                return
            try:
                with opener(raw, "rb") as file:
                    yield cast(IO[bytes], file)
            except OSError as error:  # gzip and bz2 raise it for what they cannot read
                if error.errno is not None:
                    raise
                raise EOFError(error) from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: is damaged ({error})") from None


def _open_zst(file: IO[bytes], _mode: str) -> io.BufferedReader:
    try:
        import zstandard
    except ImportError:
        raise InputError("files that end with .zst need `pip install zstandard`") from None
    return io.BufferedReader(_Pieces(_frames(file, zstandard)), 2**17)


def _open_lz4(file: IO[bytes], _mode: str) -> io.BufferedReader:
    pyarrow = import_pyarrow("files that end with .lz4")
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "lz4")
    return io.BufferedReader(cast(io.RawIOBase, stream), 2**17)


def _frames(file: IO[bytes], zstandard: ModuleType) -> Iterator[bytes]:
    """Yields the content of all frames of a .zst file.

    The package's own reader stops after the first frame, and takes a file that was cut for one
    that has ended, both without an error.
    """
    decompressor, frame = zstandard.ZstdDecompressor(), None
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
