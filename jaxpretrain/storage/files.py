"""Files that appear whole or not at all, content hashes, locks, and the cache folder."""

import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.paths import file_system, is_remote

TEMPORARY = ".unfinished-"
"""The part of a file's name that says that it is still being written."""


def cache_dir() -> Path:
    """Returns `$JAXPRETRAIN_CACHE`, or `~/.cache/jaxpretrain`; the folder need not exist yet."""
    chosen = os.environ.get("JAXPRETRAIN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "jaxpretrain"


def unfinished(path: Path) -> Path:
    """Returns the name that a file or folder has in this process until it is complete."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")


def complete(file: BinaryIO, path: Path) -> None:
    """Waits until a file that is written is on the disk, closes it, and gives it its name."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(file.name, path)


@contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Yields a file to write and read; it takes its name when the block ends without an error.

    Until then its name is `temporary`, or an unfinished one beside `path`. A file in a bucket is in
    memory until then: an object appears whole anyway.
    """
    if is_remote(path):
        content = io.BytesIO()
        yield content
        file_system(path).pipe_file(str(path), content.getvalue())  # one request, unlike open()
        return
    temporary = temporary or unfinished(path)
    try:
        with temporary.open("w+b") as file:
            yield file
            complete(file, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Writes a text as UTF-8; a reader sees the old file or the new one, never a part."""
    with atomic_file(path) as file:
        file.write(text.encode())


def relative(path: Path, root: Path) -> Path:
    """Returns a path relative to `root` where it lies below it, and as it is elsewhere."""
    return path.relative_to(root) if path.is_relative_to(root) else path


def stat_of(path: Path) -> os.stat_result:
    """Returns the size and the times of a file; raises InputError where it cannot be read."""
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # a ValueError: the name holds a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason})") from None


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def only_one_process(lock: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file; the system frees that of a dead one."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
