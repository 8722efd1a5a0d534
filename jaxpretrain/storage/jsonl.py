"""The `.jsonl` files of a run: a JSON object with "step" and "time" in each line.

They stay readable through crashes: a line is one write, a line without its newline never counts,
and resuming drops the lines that the restored checkpoint does not know.

Nothing can be appended to an object, so in a bucket the lines of `metrics.jsonl` are the parts
`metrics/00000000.jsonl`, `metrics/00000001.jsonl` and so on, one for each save. They are read
wherever they lie, as in a copy of the folder on a disk.
"""

import io
import json
import math
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import parse_json
from jaxpretrain.storage.files import atomic_file, write_atomically
from jaxpretrain.storage.paths import is_remote

_BLOCK = 1 << 22  # bytes that are read at a time
_PARALLEL = 16  # parts that are read at a time


def to_numbers(values: np.ndarray) -> float | list[Any] | None:
    """Returns an array as nested lists of numbers with four digits, or None where not finite."""
    if values.ndim:
        return [to_numbers(value) for value in values]
    return rounded(float(values), 4)


def rounded(value: float, digits: int) -> float | None:
    """Returns a number with so many significant digits; None where the result is not finite."""
    short = float(f"{value:.{digits}g}")
    return short if math.isfinite(short) else None


class JsonlWriter:
    """Appends lines to a file; cuts off a torn last line when it opens the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Writes a line to the file at once; raises OSError where it cannot, as on a full disk."""
        record: dict[str, object] = {"step": step, "time": round(time.time(), 3)}
        for name, value in values.items():
            is_number = isinstance(value, int | float)
            record[name] = None if is_number and not math.isfinite(value) else value
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            if self._file is None:
                self._file = _open_repaired(self._path)
            if self._file.write(line) != len(line):
                raise OSError(f"could not write all of a line to {self._path}")
        except OSError:
            self.close()  # the next line opens, and so repairs, the file again
            raise

    def close(self) -> None:
        """Closes the file; another `write` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _open_repaired(path: Path) -> io.FileIO:
    """Opens `path` unbuffered at its end, after cutting what follows the last newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.FileIO(path, "r+" if path.exists() else "w+")
    if file.seek(0, os.SEEK_END):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
        file.truncate(end)
        file.seek(end)
    return file


def parts_of(path: Path) -> list[Path]:
    """Returns the parts that lines are in instead of the file `path`, in order; [] for none."""
    return sorted(path.with_suffix("").glob("*.jsonl"))


def has_lines(path: Path) -> bool:
    """Returns true where there is a file of lines, or its parts."""
    return path.exists() or bool(parts_of(path))


def add_part(path: Path, lines: bytes) -> None:
    """Writes lines that follow those that are there as another part."""
    number = max((int(part.stem) for part in parts_of(path) if part.stem.isdecimal()), default=-1)
    write_atomically(path.with_suffix("") / f"{number + 1:08d}.jsonl", lines.decode())


def _opened(path: Path) -> BinaryIO:
    """Opens a file of lines; one in a bucket is read at once."""
    return io.BytesIO(path.read_bytes()) if is_remote(path) else path.open("rb")


def newest_line(path: Path, name: str) -> dict[str, Any] | None:
    """Returns the last whole line with a name, looked for near the end; None without one."""
    files = [*reversed(parts_of(path)), *([path] if not is_remote(path) and path.exists() else [])]
    for file in files:
        with _opened(file) as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - _BLOCK))
            for line in reversed(opened.read().splitlines(keepends=True)):
                if (record := _parse(line)) is not None and name in record:
                    return record
    return None


def drop_after(path: Path, step: int) -> None:
    """Removes lines above `step` and unreadable ones; a crash, or a missing file, does no harm."""
    for part in reversed(parts_of(path)):
        content = part.read_bytes()
        kept = b"".join(_until(step, content.splitlines(keepends=True)))
        if kept == content:
            break  # those before are older
        if kept:
            write_atomically(part, kept.decode())
        else:
            part.unlink()
    if is_remote(path) or not path.exists():
        return
    with path.open("rb") as old, atomic_file(path) as new:
        for line in _until(step, old):
            new.write(line)


def drop_all(path: Path) -> None:
    """Removes the file and its parts, where they are there."""
    for file in [path, *parts_of(path)]:
        file.unlink(missing_ok=True)


def read_blocks(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yields blocks of some megabytes: the number of the first line, from 1, and the records.

    A torn last line is left out, and a missing file has none. Of parts, there is one block: lines
    of a later part replace those of an earlier one about the same steps. Raises InputError for a
    complete line that is not a JSON object with a whole number as "step".
    """
    if not (parts := parts_of(path)):
        yield from _read_file(path)
        return
    files = [path, *parts] if path.exists() else parts
    records: list[dict[str, Any]] = []
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for part in pool.map(lambda file: [r for _, b in _read_file(file) for r in b], files):
            while part and records and _is_replaced(records[-1], part[0]):
                records.pop()
            records += part
    yield 1, records


def _is_replaced(record: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Returns true where a record says what the first one of a later part says anew.

    The mark of a session is about the steps after its own, and has no name that those before have.
    """
    if record["step"] != first["step"]:
        return record["step"] > first["step"]
    return not (record.keys() & first.keys()) <= {"step", "time"}


def _read_file(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    if not path.exists():
        return
    first = 1
    with _opened(path) as file:
        while lines := file.readlines(_BLOCK):
            is_torn = not lines[-1].endswith(b"\n")
            if is_torn:
                lines.pop()
            try:  # all lines at once, which takes half the time
                records: list[Any] = parse_json(b"[" + b",".join(lines) + b"]")
            except ValueError:
                records = []
            if len(records) != len(lines) or not all(map(_is_record, records)):
                records = [_parse(line) for line in lines]
                if None in records:
                    number = first + records.index(None)
                    raise bad_line(path, number, 'not a JSON object with "step"')
            yield first, records
            first += len(lines)
            if is_torn:
                return  # of a run that goes on, the rest of that line may be there by now


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of all lines, as `read_blocks` yields them."""
    return [record for _, records in read_blocks(path) for record in records]


class Follower:
    """Reads the lines that have come to a file, or as its parts, since they were last asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0  # in bytes
        self._num_lines = 0
        self._parts: set[str] = set()

    def new_blocks(self) -> Iterator[list[dict[str, Any]]]:
        """Yields the records of new lines, some megabytes at a time; errors as `read_blocks`."""
        if not is_remote(self._path) and self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._place)
                while lines := [line for line in file.readlines(_BLOCK) if line.endswith(b"\n")]:
                    yield [self._record(line) for line in lines]
                    self._place += sum(map(len, lines))
        for part in parts_of(self._path):
            if part.name not in self._parts:
                yield [record for _, block in _read_file(part) for record in block]
                self._parts.add(part.name)

    def _record(self, line: bytes) -> dict[str, Any]:
        self._num_lines += 1
        if (record := _parse(line)) is None:
            raise bad_line(self._path, self._num_lines, 'not a JSON object with "step"')
        return record


def bad_line(path: Path, number: int, reason: str) -> InputError:
    """Returns the error about a line that is complete and yet wrong."""
    return InputError(f"{path}, line {number}: {reason}; remove that line")


def _until(step: int, lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines up to a step that can be read."""
    for line in lines:
        record = _parse(line)
        if record is not None and record["step"] <= step:
            yield line


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the record on a line; None where the line is torn or something else."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if _is_record(record) else None


def _is_record(record: object) -> bool:
    if not isinstance(record, dict):
        return False
    step = record.get("step")
    return type(step) is int and step >= 0
