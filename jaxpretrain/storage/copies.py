"""Local copies of files in a bucket, for what is mapped into memory or read by other libraries.

Files are copied once to the cache of this machine, several at a time, and verified by their size
and by a hash where one is known. A copy that was interrupted goes on where it was; one whose object
has changed is made anew.
"""

import base64
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from jaxpretrain.config.errors import InputError
from jaxpretrain.display.progress import MAX_SILENCE, Progress
from jaxpretrain.storage.files import TEMPORARY, cache_dir, only_one_process, sha256_of
from jaxpretrain.storage.paths import file_system, is_remote, list_files

_BLOCK = 2**26
"""Bytes of one request."""
_PARALLEL = 8
"""Files that are copied at a time."""


def local_copy(
    path: Path,
    is_wanted: Callable[[str], bool] = lambda name: True,
    hashes: Mapping[str, str] | None = None,
) -> Path:
    """Returns a path of this machine with the content of a file or folder: itself, or a copy.

    Of a folder in a bucket, the files are copied whose names relative to it are wanted; `hashes`
    are SHA-256 by such names. One process of a machine copies, the others wait for it. Raises
    InputError where nothing is there or a copy is not what was listed, OSError where the bucket
    does not answer.
    """
    if not is_remote(path):
        return path
    scheme, _, rest = str(path).partition("://")
    local = cache_dir() / "buckets" / scheme / rest
    found = {str(file.relative_to(path)): (file, about) for file, about in list_files(path).items()}
    if not found:
        raise InputError(f"{path}: there is no such file or folder")
    files = {name: entry for name, entry in found.items() if name == "." or is_wanted(name)}
    if outside := next((name for name in files if ".." in name.split("/")), None):
        raise InputError(f"{path}: the object {outside} would be copied out of its folder")
    lock = cache_dir() / "locks" / hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with only_one_process(lock):
        missing = [
            _Copy(file, about, local / name, (hashes or {}).get(name))
            for name, (file, about) in files.items()
            if not _is_copy(local / name, about)
        ]
        if missing:
            _copy_all(missing, f"copying {path}: MB")
    return local


@dataclass
class _Copy:
    """The copy of an object to this machine."""

    file: Path
    about: Mapping[str, Any]
    """The size of the object in the bucket, its time and its hash, as the bucket tells them."""
    local: Path
    sha256: str | None
    """The hash that the object must have, where it is known."""
    num_bytes: int = 0
    """The bytes that are here, those of an interrupted copy too."""

    def make(self, stop: Event) -> None:
        """Copies until the end, or until `stop`; goes on where an earlier copy has ended."""
        size, time_written = self.about["size"], _time_of(self.about)
        version = hashlib.sha256(repr((size, time_written)).encode()).hexdigest()[:12]
        part = self.local.with_name(f"{self.local.name}{TEMPORARY}{version}")
        self.local.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as output:
            self.num_bytes = output.tell()
            while self.num_bytes < size and not stop.is_set():
                start, end = self.num_bytes, min(self.num_bytes + _BLOCK, size)
                block = file_system(self.file).cat_file(str(self.file), start=start, end=end)
                if len(block) != end - start:
                    raise InputError(f"{self.file}: has changed while it was copied; run it again")
                output.write(block)
                self.num_bytes = end
        if stop.is_set():
            return
        if against := _complaint(part, self.about, self.sha256):
            part.unlink()
            advice = "run it again, and if that does not help, replace it"
            raise InputError(f"{self.file}: {against}; {advice}")
        os.utime(part, (time_written, time_written))
        os.replace(part, self.local)


def _copy_all(copies: Sequence[_Copy], what: str) -> None:
    """Makes copies, several at a time, and shows how far they are."""
    total, began, told = sum(copy.about["size"] for copy in copies), time.monotonic(), 0.0
    stop = Event()
    with (
        Progress(max(total // 10**6, 1), what, stays=False) as progress,
        ThreadPoolExecutor(_PARALLEL) as pool,
    ):
        waiting: set[Future[None]] = {pool.submit(copy.make, stop) for copy in copies}
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                seconds = max(time.monotonic() - began, 1e-3)
                num_bytes = sum(copy.num_bytes for copy in copies)
                rate = num_bytes / seconds
                is_due = seconds - told > MAX_SILENCE
                told = seconds if is_due else told
                metrics = {
                    "perf/megabytes_per_second": rate / 1e6,
                    "perf/eta_seconds": (total - num_bytes) / rate if rate else None,
                }
                progress.update(num_bytes // 10**6, metrics if is_due else None)
        finally:
            stop.set()  # after a failure, the others end with their blocks
            pool.shutdown(cancel_futures=True)


def _complaint(part: Path, about: Mapping[str, Any], sha256: str | None) -> str:
    """Returns what is wrong with a copy; "" where it is right."""
    if part.stat().st_size != about["size"]:
        return f"its copy has {part.stat().st_size} bytes, not {about['size']}"
    if sha256 is not None:
        return "" if sha256_of(part) == sha256 else "is damaged, its SHA-256 is not the manifest's"
    if md5 := about.get("md5Hash"):
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").digest()
        return "" if digest == base64.b64decode(md5) else "its copy has another MD5"
    return ""


def _is_copy(local: Path, about: Mapping[str, Any]) -> bool:
    """Returns true where a file is the copy of an object as it is now."""
    if not local.is_file():
        return False
    there = local.stat()
    return there.st_size == about["size"] and abs(there.st_mtime - _time_of(about)) < 1e-3


def _time_of(about: Mapping[str, Any]) -> float:
    """Returns the time at which an object was written; the beginning of time where not told."""
    written = about.get("mtime")
    return written.timestamp() if written is not None else 0.0
