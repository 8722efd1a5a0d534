"""The files that a run writes while it trains, where its folder is in a bucket.

They grow in a local folder, as they do in a folder on a disk. Each save brings them to the bucket
before its checkpoint counts: new lines of `.jsonl` files as another part, all else whole. A crash
loses at most the lines since the last save, which the next session writes again.
"""

import hashlib
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage import jsonl
from jaxpretrain.storage.files import cache_dir
from jaxpretrain.storage.paths import file_system, is_remote


def local_folder(folder: Path) -> Path:
    """Returns the folder that a run writes its files to; its own where that is on a disk."""
    if not is_remote(folder):
        return folder
    return cache_dir() / "runs" / hashlib.sha256(str(folder).encode()).hexdigest()[:16]


class Staging:
    """The local folder of a run in a bucket, with the files that are still to be brought there."""

    def __init__(
        self,
        target: Path,
        logs: Collection[str],
        message: Callable[[str], None],
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """Empties the local folder of `target`; `logs` are the names of the `.jsonl` files in it.

        `message` shows the user one line, about a failure; `guard` raises OSError where `target` is
        no longer the run's.
        """
        self.target, self.folder = target, local_folder(target)
        self._lines_sent = dict.fromkeys(logs, 0)  # in bytes
        self._sent: dict[Path, tuple[int, int]] = {}
        self._message, self._guard = message, guard
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def fetch(self, path: Path) -> None:
        """Copies a file of the bucket to the local folder; it is brought back where it changes."""
        local = self.folder / path.relative_to(self.target)
        local.write_bytes(path.read_bytes())
        self._sent[local] = _version(local)

    def publish(self) -> None:
        """Brings what is new to the bucket; a failure is one line, and the next call makes up."""
        try:
            self._guard()
            for name in self._lines_sent:
                self._send_lines(name)
            for local in sorted(self.folder.rglob("*")):
                if local.name in self._lines_sent or not local.is_file():
                    continue
                if self._sent.get(local) != (version := _version(local)):
                    remote = self.target / str(local.relative_to(self.folder))
                    file_system(remote).put_file(str(local), str(remote))
                    self._sent[local] = version
        except (OSError, InputError) as error:
            self._message(f"warning: {self.target}: files are not brought up to date: {error}")

    def _send_lines(self, name: str) -> None:
        local = self.folder / name
        if not local.exists():
            return
        with local.open("rb") as file:
            file.seek(self._lines_sent[name])
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        if lines:
            jsonl.add_part(self.target / name, lines)
            self._lines_sent[name] += len(lines)


def _version(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
