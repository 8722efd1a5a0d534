"""Files that may be compressed: .gz, .xz and .zst. A damaged or cut one is an error."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

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
    return io.BufferedReader(_ZstFile(path, zstandard), 2**17)


class _ZstFile(io.RawIOBase):
    """A reader of all frames of a .zst file.

    The package's own reader stops after the first frame, and takes a file that was cut for one
    that has ended, both without an error.
    """

    def __init__(self, path: Path, zstandard: ModuleType):
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._file = path.open("rb")
        self._frame: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._ready:
            self._compressed = self._compressed or self._file.read(2**17)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the compressed file ended early")
                return 0
            self._ready = memoryview(self._decompress())
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress(self) -> bytes:
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            data = self._frame.decompress(self._compressed)
        except self._error as error:
            raise EOFError(str(error)) from None
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return data

    def close(self) -> None:
        self._file.close()
        super().close()
