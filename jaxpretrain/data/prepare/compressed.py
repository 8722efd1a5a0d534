"""Files that may be compressed: .gz, .xz and .zst. A damaged or cut one is an error."""

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

SUFFIXES = (".gz", ".xz", ".zst")


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
