"""One save of a checkpoint: all processes write it in the background, the first commits it.

It grows under a temporary name and is renamed when every process has written its parts and has read
them back as they are in memory. So every checkpoint that counts was whole once. A bucket renames
nothing: there it grows under its own name, and counts from `commit_success.txt` on. A save that
fails in one process fails in all of them, leaves nothing behind and gives its reason in one line.
Where there is no room for it, it waits a while for some.

Orbax writes the arrays, but its manager is not used: where one process cannot write, it has the
others wait until a time limit, and it tells of a failure only at the next save.
"""

import asyncio
import errno
import functools
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from jaxpretrain.checkpoints.names import part_checksum
from jaxpretrain.checkpoints.streamed import COMMIT, opener
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document
from jaxpretrain.devices.chips import GIB
from jaxpretrain.parallel.distributed import exchange, first_problem, is_primary
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.paths import (
    absolute,
    file_system,
    is_remote,
    list_files,
    names_in,
    patience,
)

_SLOWEST = 2**20
"""Bytes a second below which a process's part of a save has failed."""
_READ_BYTES = 2**28
"""Bytes of an array that are read back at a time."""
_PARALLEL = 16
"""Steps of a folder that are looked at at a time."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEMPORARY = ".orbax-checkpoint-tmp"
_HANDLERS = "orbax.checkpoint._src.handlers"
_ITEMS = {
    "item_handlers": {
        "meta": f"{_HANDLERS}.json_checkpoint_handler.JsonCheckpointHandler",
        "state": f"{_HANDLERS}.pytree_checkpoint_handler.PyTreeCheckpointHandler",
    }
}
"""Orbax's own description of the items of a checkpoint, by which its readers open one."""


def seconds_for(state: object) -> float:
    """Returns the seconds that this process may take to write or read its parts of a state.

    `state` is a tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.
    """
    num_bytes = 0
    for leaf in jax.tree.leaves(state):
        shape = leaf.sharding.shard_shape(leaf.shape)
        num_shards = len(leaf.sharding.addressable_devices)
        num_bytes += num_shards * math.prod(shape) * leaf.dtype.itemsize
    return patience() + num_bytes / _SLOWEST


class Save(threading.Thread):
    """A save under way, which all processes make together.

    The arrays are copied when the constructor returns, and may be donated. The first process calls
    two functions, in the background: `guard` before it changes anything in a bucket, which raises
    OSError where the folder is no longer the run's, and `committed` once the checkpoint is in its
    folder, which must be new.
    """

    def __init__(
        self,
        folder: Path,
        named: Mapping[str, jax.Array],
        document: Document,
        committed: Callable[[], None],
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(target=self._run, args=(dict(named),), name="save")
        self.step = int(folder.name)
        self.problem: str | None = None
        """Reason of the failure, one line, the same in all processes; None where it succeeds."""
        self.seconds = 0.0
        """Seconds from the beginning to the commit, once it has ended."""
        self._folder = folder
        is_renamed = not is_remote(folder)
        self._temporary = folder.with_name(folder.name + _TEMPORARY) if is_renamed else folder
        self._state = epath.Path(absolute(self._temporary)) / "state"  # the kind that Orbax takes
        self._document = document
        self._committed, self._guard = committed, guard
        self._handler = ocp.PyTreeCheckpointHandler()
        self._num_bytes = sum(array.nbytes for array in named.values())
        # Name -> where the parts lie that this process writes.
        self._parts = {
            name: [part.index for part in array.addressable_shards if part.replica_id == 0]
            for name, array in named.items()
        }
        self._has_begun = False
        self.has_ended = threading.Event()
        """Set at its end. Python takes a thread that goes on for ended where Ctrl-C comes while it
        is joined."""
        self._is_copied = threading.Event()
        silence_orbax()
        self.start()
        self._is_copied.wait()

    def _run(self, named: dict[str, jax.Array]) -> None:
        try:
            self._save_and_commit(named)
        finally:
            self.has_ended.set()

    def _save_and_commit(self, named: dict[str, jax.Array]) -> None:
        began = time.monotonic()
        try:
            self.problem = self._save(named)
        except Exception as error:  # the other processes cannot be asked
            self.problem = reason(error)
        finally:
            self._is_copied.set()
            self.seconds = time.monotonic() - began
        if not is_primary():
            return
        with suppress(OSError, InputError):
            self._guard()
            if self.problem is None:  # there is a checkpoint, whatever happens to older ones
                self._committed()
            elif self._has_begun:
                remove(self._temporary)

    def _save(self, named: dict[str, jax.Array]) -> str | None:
        """Writes and commits; returns the problem of the first process that has one."""
        return (
            first_problem("save begins", _attempt(self._make_folders, is_primary()))
            or first_problem("save is written", _attempt(lambda: self._write(named)))
            or first_problem("save is complete", _attempt(self._complete, is_primary()))
            or self._read_back()
            or first_problem("save is committed", _attempt(self._commit, is_primary()))
        )

    def _make_folders(self) -> None:
        self._guard()
        if (self._folder / COMMIT if is_remote(self._folder) else self._folder).exists():
            raise FileExistsError(f"{self._folder} exists already")
        self._has_begun = True  # what lies there from now on is of this save
        remove(self._temporary)
        self._wait_for_room()
        if is_remote(self._folder):
            return
        self._temporary.mkdir()  # never its parents: where they are gone, a mount may be
        for item in ("state", "meta"):
            (self._temporary / item).mkdir()

    def _wait_for_room(self) -> None:
        """Waits where the disk is full, and says so; OSError where it stays full."""
        deadline, is_told = time.monotonic() + patience(), False
        while problem := shortage(self._folder.parent, self._num_bytes):
            if time.monotonic() > deadline:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {problem}")
            if not is_told:
                line = f"warning: step {self.step:,} waits up to {patience():.0f} s for room on the"
                print(f"{line} disk: {problem}", file=sys.stderr, flush=True)
                is_told = True
            time.sleep(min(2.0, patience() / 10))

    def _write(self, named: dict[str, jax.Array]) -> None:
        """Writes this process's parts of the arrays."""
        deadline = time.monotonic() + seconds_for(named)
        request = ocp.args.PyTreeSave(named)
        writes = asyncio.run(self._handler.async_save(self._state, args=request)) or []
        self._is_copied.set()
        for write in writes:
            write.result(max(deadline - time.monotonic(), 0))

    def _complete(self) -> None:
        """Makes one checkpoint of the parts of all processes."""
        self._handler.finalize(self._state)

    def _read_back(self) -> str | None:
        """Returns the problem where the parts of all processes read other than written."""
        sums: dict[str, int] = {}
        problem = _attempt(lambda: sums.update(self._read_sums()))
        found = [json.loads(text) for text in exchange("save is read", json.dumps([problem, sums]))]
        if problem := next((problem for problem, _ in found if problem), None):
            return f"it cannot be read back: {problem}"
        for name, array in self._document.get("arrays", {}).items():
            if sum(parts.get(name, 0) for _, parts in found) % 2**32 != array["checksum"]:
                return f"{name} reads other than it was written"
        return None

    def _read_sums(self) -> dict[str, int]:
        """Returns the share of this process in the checksum of each array, from what is stored."""
        open_, sums = opener(absolute(self._temporary / "state")), {}
        for name, parts in self._parts.items():
            if parts:
                store = open_(name)
                sums[name] = sum(_sum_of(store[part]) for part in parts) % 2**32
        return sums

    def _commit(self) -> None:
        stamped = {**_ITEMS, "commit_timestamp_nsecs": time.time_ns()}
        write_atomically(self._temporary / "meta" / "metadata", json.dumps(dict(self._document)))
        write_atomically(self._temporary / "_CHECKPOINT_METADATA", json.dumps(stamped))
        self._guard()
        write_atomically(self._temporary / COMMIT, "")
        if not is_remote(self._folder):
            os.rename(self._temporary, self._folder)


def _sum_of(part: ts.TensorStore) -> int:
    """Returns the checksum of a part of a stored array, read some rows at a time."""
    if not part.shape:
        return part_checksum(np.asarray(part.read().result()))
    first, last = part.domain[0].inclusive_min, part.domain[0].exclusive_max
    row_bytes = math.prod(part.shape[1:]) * part.dtype.numpy_dtype.itemsize
    num_rows = max(1, _READ_BYTES // max(1, row_bytes))
    return sum(
        part_checksum(np.asarray(part[row : min(row + num_rows, last)].read().result()))
        for row in range(first, last, num_rows)
    )


def shortage(directory: Path, num_bytes: int) -> str | None:
    """Returns a line that says how much disk space is missing for a checkpoint in a folder.

    None where there is enough. The system tells the quota of a project or container as the size of
    its disk; that of a user it does not tell, and a bucket has none.
    """
    if is_remote(directory):
        return None
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return None  # what is wrong there is told by what happens next
    if free >= num_bytes:
        return None
    return f"a checkpoint takes {num_bytes / GIB:.3g} GiB, {free / GIB:.3g} GiB are free"


def is_full(problem: str) -> bool:
    """Returns True for the reason of a save that found no room on the disk."""
    return any(os.strerror(number) in problem for number in _FULL)


def steps_in(directory: Path) -> dict[int, bool]:
    """Returns the steps that have a folder in a folder of checkpoints, and which are finished."""
    steps = [int(name) for name in names_in(directory) if name.isdecimal()]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        are_finished = pool.map(lambda step: _is_finished(directory / str(step)), steps)
        return dict(zip(steps, are_finished, strict=True))


def _is_finished(folder: Path) -> bool:
    return (folder / COMMIT).exists() if is_remote(folder) else folder.is_dir()


def make_folder(directory: Path) -> None:
    """Makes a folder of checkpoints without remains of saves; InputError where it cannot."""
    if is_remote(directory):
        for step, is_finished in steps_in(directory).items():
            if not is_finished:
                remove(directory / str(step))
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = f"{directory}, a link to {directory.readlink()}," if directory.is_symlink() else ""
        raise InputError(f"{where or directory} cannot be made: {error.strerror}") from error
    for path in directory.glob(f"*{_TEMPORARY}*"):
        if path.name.partition(_TEMPORARY)[0].isdecimal():
            remove(path)


def remove(folder: Path) -> None:
    """Removes the folder of a checkpoint, so that half of one is never taken for a checkpoint.

    A folder that cannot be removed stays: the next start tries again.
    """
    if is_remote(folder):
        (folder / COMMIT).unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # there is nothing else
            file_system(folder).rm(str(folder), recursive=True)
        return
    aside = folder
    if _TEMPORARY not in folder.name:
        aside = folder.with_name(folder.name + _TEMPORARY)
        try:
            os.rename(folder, aside)
        except OSError:
            return
    for _ in range(20):  # writes that were under way may still add files
        shutil.rmtree(aside, ignore_errors=True)
        if not aside.exists():
            return
        time.sleep(0.05)


def move_aside(source: Path, folder: Path) -> Path:
    """Moves a checkpoint into a folder, under a new name where its own is taken; returns its path.

    Where they lie on two file systems it stays, under a name that is no checkpoint's, and the
    folder gets a link to it: one rename, however large it is. A bucket copies it, within itself.
    """
    folder.mkdir(exist_ok=True)
    target, number = folder / source.name, 1
    while target.is_dir() if is_remote(target) else os.path.lexists(target):
        number += 1
        target = target.with_name(f"{source.name}.{number}")
    if is_remote(source):
        for path in list_files(source):
            to = target / str(path.relative_to(source))
            file_system(source).cp_file(str(path), str(to))
        remove(source)
        return target
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = source.with_name(f"{target.name}.corrupt")
        target.symlink_to(os.path.relpath(aside, folder))  # first, so that it is never lost
        os.rename(source, aside)
    return target


def reason(error: BaseException) -> str:
    """Returns the message of an error in one short line.

    For TensorStore's errors, it is only the system's message.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"[:300]
    if found := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(found[1]))
    return text[:160]


@functools.cache
def silence_orbax() -> None:
    """Keeps Orbax's tracebacks from the terminal; its errors are one line here.

    It logs an error in each layer that it passes. It also gives up its other reads and writes at
    the first that fails, each of which finds its event loop closed and prints a hundred lines and
    more.
    """
    logging.getLogger("asyncio").addFilter(lambda line: "never retrieved" not in line.getMessage())
    logging.getLogger("absl").addFilter(
        lambda line: not (line.exc_info and f"{os.sep}orbax{os.sep}" in line.pathname)
    )
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _attempt(action: Callable[[], None], is_mine: bool = True) -> str | None:
    """Does an action that falls to this process; returns why it failed, None where it did not."""
    try:
        if is_mine:
            action()
    except Exception as error:  # Orbax and TensorStore raise many kinds
        return reason(error)
    return None
