"""Checkpoints: flat named arrays plus a small JSON document, written by Orbax.

A checkpoint knows nothing of classes: `params/blocks/0/query/kernel`, `optimizer/adam/mu/...`,
`step`. Saving is asynchronous and atomic. Each checkpoint carries the shape, the dtype and an
integer checksum of every array. Checksums are taken on the devices before the save and compared
after a restore, because storage below Orbax can hand back changed bytes without an error.

All processes of a run save and restore together, each its own parts of the arrays, in one folder
that all of them see. What one cannot read counts as unreadable for all.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from jaxpretrain.checkpoints.names import checksums, from_named, kind, part_checksum, to_named
from jaxpretrain.checkpoints.saving import (
    Save,
    SaveOutcome,
    make,
    move_aside,
    remove,
    remove_leftovers,
    silence_orbax,
)
from jaxpretrain.checkpoints.streamed import Streamed, stored_rows
from jaxpretrain.config.documents import checked, read_object
from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.distributed import exchange, first_problem, is_primary
from jaxpretrain.storage.files import write_atomically


class CorruptCheckpoint(Exception):
    """A checkpoint cannot be read, or reads other than it was written."""


@dataclass(frozen=True)
class _Array:
    """What a checkpoint says of an array."""

    shape: tuple[int, ...]
    dtype: str
    checksum: int


@dataclass(frozen=True)
class _Document:
    """What is read of the JSON document of a checkpoint."""

    arrays: dict[str, _Array]
    clock: dict[str, float] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    data_position: int | None = None
    evaluation_due: bool = False


def finished_steps(directory: Path) -> list[int]:
    """Steps that have a folder in a folder of checkpoints, in order; none where it is missing.

    Nothing is opened: a checkpoint may prove damaged.
    """
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def read_document(directory: Path, step: int) -> dict[str, Any]:
    """What was saved beside the arrays of the checkpoint of a step; see `Checkpoints.document`.

    Raises:
      CorruptCheckpoint: it cannot be read.
    """
    path = directory / str(step) / "meta" / "metadata"
    try:
        document = read_object(path)
        for array in checked(_Document, document, path).arrays.values():
            np.dtype(array.dtype)  # TypeError: there is no such type
    except (InputError, TypeError) as error:
        raise CorruptCheckpoint(str(error)) from error
    return document


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`."""

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        read_only: bool = False,
    ) -> None:
        """Keeps the newest `keep_last` and, for good, those at multiples of `keep_every` steps.

        Unless it only reads, the first process must hold the folder of the run: it removes what
        interrupted saves have left.

        Raises:
          InputError: the directory cannot be made.
        """
        self.directory = directory
        self._corrupt = directory.parent / "corrupt"
        self._keep_last, self._keep_every = keep_last, keep_every
        self._under_way: tuple[int, Save] | None = None
        self._ended: list[SaveOutcome] = []
        if not read_only and is_primary():
            make(directory)
            remove_leftovers(directory)

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, in order."""
        names = [path.name for path in self.directory.glob("*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Starts saving; returns once the arrays are copied and may be donated.

        Waits for the save before. How this one ends is told by `ended`.
        """
        self.wait()
        named = to_named(state)
        sums = jax.device_get(checksums(named))
        arrays = {name: {**kind(x), "checksum": int(sums[name])} for name, x in named.items()}
        document = {**extra, "arrays": arrays}
        self._under_way = step, Save(self._folder(step), named, document, self._remove_old)

    def ended(self) -> list[SaveOutcome]:
        """The saves that have ended since this was last asked, in order; waits for nothing."""
        if self._under_way is not None and self._under_way[1].has_ended:
            self.wait()
        ended, self._ended = self._ended, []
        return ended

    def restore_newest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, extra) of the newest sound checkpoint, or None where there is none.

        `like` is a tree of `jax.ShapeDtypeStruct` with shardings. A checkpoint that cannot be read
        is moved aside to `corrupt/`, with a warning, and the one before it is taken.

        Raises:
          InputError: there are checkpoints, and none can be read; or they are another model's.
        """
        steps = json.loads(exchange("checkpoints", json.dumps(self.steps()))[0])
        for step in reversed(steps):
            try:
                return (step, *self.restore(step, like))
            except CorruptCheckpoint as error:
                self._set_aside(step, error)
        if self._corrupt.exists():
            raise InputError(
                f"{self.directory}: no checkpoint can be read, all are in {self._corrupt}. Put a "
                "sound copy of one back to go on; to begin again, take another folder"
            )
        return None

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, extra) of one checkpoint; only the arrays that `like` names are read.

        Raises:
          InputError: the checkpoint holds other arrays, or of other shapes, than `like` asks for.
          CorruptCheckpoint: it cannot be read.
        """
        problem = named = extra = None
        try:
            named, extra = self._read(step, to_named(like))
        except CorruptCheckpoint as error:
            problem = str(error)
        problem = first_problem("restore", problem)
        if problem is not None:
            raise CorruptCheckpoint(problem)
        assert named is not None and extra is not None
        saved = extra.pop("arrays")
        found = jax.device_get(checksums(named))
        for name, value in found.items():
            if int(value) != saved[name]["checksum"]:
                raise CorruptCheckpoint(f"the checksum of {name} differs")
        return from_named(like, named), extra

    def document(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays of a checkpoint, and about each of them in `arrays`.

        Raises:
          CorruptCheckpoint: it cannot be read.
        """
        return read_document(self.directory, step)

    def amend(self, step: int, **changes: Any) -> None:
        """Changes values in the document of a finished checkpoint.

        Where it cannot be written they stay as they are.
        """
        if is_primary():
            document = self.document(step) | changes
            with suppress(OSError):
                write_atomically(self._folder(step) / "meta" / "metadata", json.dumps(document))

    def stream(self, step: int) -> dict[str, Streamed]:
        """The arrays of a checkpoint, to be read by as many rows at a time as lie together.

        Raises:
          CorruptCheckpoint: at once or while an array is read: it is not what was written.
        """
        state = self.directory.absolute() / str(step) / "state"
        file: dict[str, Any] = {"driver": "file", "path": f"{state}/"}
        if (state / "manifest.ocdbt").exists():
            file = {"driver": "ocdbt", "base": file}

        def stream(name: str, found: dict[str, Any]) -> Streamed:
            def parts() -> Iterator[np.ndarray]:
                kvstore = {**file, "path": f"{file.get('path', '')}{name}/"}
                checksum = 0
                try:
                    store = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True).result()
                    stored = {"shape": list(store.shape), "dtype": store.dtype.name}
                    if stored != {key: found[key] for key in stored}:
                        raise CorruptCheckpoint(f"{name} is stored as {stored}")
                    for rows in stored_rows(store):
                        part = np.asarray(store[rows].read().result())
                        checksum += part_checksum(part)
                        yield part
                except ValueError as error:  # all that TensorStore raises
                    raise CorruptCheckpoint(str(error).strip().splitlines()[0][:160]) from error
                if checksum % 2**32 != found["checksum"]:
                    raise CorruptCheckpoint(f"the checksum of {name} differs")

            return Streamed(tuple(found["shape"]), np.dtype(found["dtype"]), parts)

        arrays = self.document(step)["arrays"]
        return {name: stream(name, found) for name, found in arrays.items()}

    def wait(self) -> None:
        """Blocks until the save under way has ended."""
        if self._under_way is not None:
            step, save = self._under_way
            save.wait()
            self._ended.append(SaveOutcome(step, save.problem))
            self._under_way = None

    def close(self) -> None:
        """Finishes the save under way."""
        self.wait()

    def _read(self, step: int, wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """This process's parts of the wanted arrays, and the JSON document."""
        meta = self.document(step)
        self.check_arrays(step, wanted, meta["arrays"])
        restore_args = jax.tree.map(
            lambda s: ocp.ArrayRestoreArgs(
                sharding=s.sharding, global_shape=s.shape, dtype=s.dtype, strict=True
            ),
            wanted,
        )
        request = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        silence_orbax()
        reader = ocp.PyTreeCheckpointHandler()
        path = epath.Path(self._folder(step).absolute()) / "state"
        try:
            named = reader.restore(path, args=request)
        except jax.errors.JaxRuntimeError:
            raise  # the devices' trouble, such as too little memory, and not the file's
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise CorruptCheckpoint(str(error).strip().splitlines()[0][:160]) from error
        # Orbax hands back what it was asked for where its own list of arrays lacks one.
        if lost := [name for name, array in named.items() if not isinstance(array, jax.Array)]:
            raise CorruptCheckpoint(f"state/_METADATA does not list {lost[0]}")
        return named, meta

    def check_arrays(
        self, step: int, wanted: dict[str, Any], saved: dict[str, dict[str, Any]]
    ) -> None:
        """Raises InputError unless the arrays that a document lists are those that are wanted."""
        where = f"checkpoint {self.directory / str(step)}"
        missing = sorted(set(wanted) - set(saved))
        if missing:
            raise InputError(
                f"{where} has no {missing[0]}"
                + (f" and {len(missing) - 1} more that are needed" if missing[1:] else "")
            )
        for name, x in wanted.items():
            here, there = kind(x), {key: saved[name][key] for key in kind(x)}
            if here != there:
                raise InputError(f"{where} is another model's: {name} is {there}, not {here}")

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _remove_old(self) -> None:
        """Removes the checkpoints that are not to be kept."""
        steps = self.steps()
        for step in steps[: -self._keep_last] if self._keep_last else []:
            if not self._keep_every or step % self._keep_every:
                remove(self._folder(step))

    def _set_aside(self, step: int, error: CorruptCheckpoint) -> None:
        """Moves a damaged checkpoint to `corrupt/`.

        Raises:
          InputError: it cannot be moved.
        """
        problem = None
        if is_primary():
            try:
                target = move_aside(self._folder(step), self._corrupt)
            except OSError as failure:
                problem = f"{self._folder(step)} is damaged and cannot be moved: {failure}"
            else:
                print(
                    f"warning: checkpoint {step} is damaged ({error}); moved to {target}, "
                    "falling back to the one before",
                    file=sys.stderr,
                )
        problem = first_problem("set aside", problem)  # and nobody looks before it is moved
        if problem is not None:
            raise InputError(problem)
