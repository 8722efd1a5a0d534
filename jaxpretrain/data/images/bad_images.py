"""The images of a run that cannot be decoded, known to all its processes on one machine."""

import json
import tempfile
from pathlib import Path

from jaxpretrain.config.errors import InputError


class BadImages:
    """A list of names and reasons, with each image once.

    It is a temporary file with a line for each image and process, because the processes that decode
    have nothing in common but the disk. The file is deleted with the object that made it.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._file = tempfile.NamedTemporaryFile(prefix="jaxpretrain-", suffix=".txt")  # noqa: SIM115
        self._path = Path(self._file.name)
        self._known: set[str] = set()
        self._num_reported = 0

    def add(self, name: str, reason: str) -> None:
        """Adds an image. Raises InputError where it is one more than the limit."""
        if name in self._known:
            return
        with self._path.open("a") as file:  # one write of one line: nothing comes between
            file.write(json.dumps([name, reason]) + "\n")
        self._known.add(name)
        lines = self._lines()
        if len(lines) > self._limit:
            raise InputError(
                f"{len(lines)} images cannot be decoded, the last is {lines[-1]}; repair the data,"
                f" or raise data.max_undecodable={self._limit}"
            )

    def _lines(self) -> list[str]:
        """Returns `name: reason` of all images, in the order in which they were found."""
        reasons: dict[str, str] = {}
        for line in self._path.read_text().splitlines():
            name, reason = json.loads(line)
            reasons.setdefault(name, reason)  # one process may put it otherwise than another
        return [f"{name}: {' '.join(reason.split())}" for name, reason in reasons.items()]

    def report(self) -> list[str]:
        """Returns a warning for each image that is new since the last call."""
        lines = self._lines()
        new, self._num_reported = lines[self._num_reported :], len(lines)
        return [f"warning: another image stands in for {line}" for line in new]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}
