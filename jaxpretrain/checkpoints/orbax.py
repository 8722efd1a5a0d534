"""Checkpoints: flat named arrays plus a small JSON document, written by Orbax.

A checkpoint knows nothing of classes: `params/blocks/0/query/kernel`, `optimizer/adam/mu/...`,
`step`. Saving is asynchronous and atomic. Checksums of the arrays are taken on the devices before
the save and compared after a restore, because storage below Orbax can hand back changed bytes
without an error.

All processes of a run save and restore together, each its own parts of the arrays, in one folder
that all of them see. What one cannot read counts as unreadable for all.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxpretrain.checkpoints import saving
from jaxpretrain.checkpoints.names import checksums, describe, from_named, kind, to_named
from jaxpretrain.checkpoints.streamed import CorruptCheckpoint, Streamed, opener, stored_array
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, checked, read_object
from jaxpretrain.parallel.distributed import exchange, first_problem, is_primary
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.paths import absolute


@dataclass(frozen=True)
class _Array:
    """The description of an array in a checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    checksum: int


@dataclass(frozen=True)
class _Document:
    """The fields of the JSON document of a checkpoint that are read."""

    arrays: dict[str, _Array]
    clock: dict[str, float] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    data_position: int | None = None
    evaluation_due: bool = False


def finished_steps(directory: Path) -> list[int]:
    """Returns the steps that have a folder in a folder of checkpoints, in order.

    Nothing is opened: a checkpoint may prove damaged. A missing folder has none. In a bucket, a
    step without its commit is none.
    """
    return sorted(step for step, finished in saving.steps_in(directory).items() if finished)


def require_checksums(named: dict[str, jax.Array], saved: Document) -> None:
    """Raises CorruptCheckpoint where restored arrays have other bits than were saved.

    `saved` describes them, as `names.describe` does; it may describe more. All processes of the
    arrays call it together.
    """
    for name, value in jax.device_get(checksums(named)).items():
        if int(value) != saved[name]["checksum"]:
            raise CorruptCheckpoint(f"the checksum of {name} differs")


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`."""

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        read_only: bool = False,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens a folder of checkpoints, and makes it unless it is only read.

        A save removes all but the newest `keep_last` and those at multiples of `keep_every` steps.
        `guard` raises OSError where the folder is no longer the run's; then nothing is changed.
        To write, the first process must hold the folder of the run: it removes what interrupted
        saves have left. Raises InputError where the folder cannot be made.
        """
        self.directory = directory
        self._corrupt = directory.parent / "corrupt"
        self._keep_last, self._keep_every, self._guard = keep_last, keep_every, guard
        self._under_way: saving.Save | None = None
        self._ended: list[saving.Save] = []
        if not read_only and is_primary():
            saving.make_folder(directory)

    def steps(self) -> list[int]:
        """Returns the steps that have a finished checkpoint, in order."""
        return finished_steps(self.directory)

    def save(self, step: int, state: object, extra: Mapping[str, object]) -> None:
        """Waits for the save before and starts one; returns once the arrays are copied."""
        self.wait()
        named = to_named(state)
        document = {**extra, "arrays": describe(named)}
        folder = self._folder(step)
        self._under_way = saving.Save(folder, named, document, self._remove_old, self._guard)

    def shortage(self, like: object) -> str | None:
        """Returns, in all processes, a line that says how much disk space a checkpoint lacks.

        None where there is enough.
        """
        num_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(like))
        return first_problem("room", saving.shortage(self.directory, num_bytes))

    def ended(self) -> list[saving.Save]:
        """Returns the saves that have ended since the last call, in order; waits for nothing."""
        if self._under_way is not None and self._under_way.has_ended.is_set():
            self.wait()
        ended, self._ended = self._ended, []
        return ended

    def restore_newest(self, like: object, first: int = 0) -> tuple[int, Any, Document] | None:
        """Returns (step, state, extra) of the newest sound checkpoint, or None without one.

        `like` is a tree of `jax.ShapeDtypeStruct` with shardings. Checkpoints before the step
        `first` are left out. One that cannot be read is moved aside to `corrupt/`, with a warning,
        and the one before it is taken. Raises InputError where there are checkpoints and none at
        all can be read, or they are another model's.
        """
        steps = json.loads(exchange("checkpoints", json.dumps(self.steps()))[0])
        for step in reversed([step for step in steps if step >= first]):
            try:
                return (step, *self.restore(step, like))
            except CorruptCheckpoint as error:
                self._set_aside(step, error)
        if first == 0 and self._corrupt.exists():
            raise InputError(
                f"{self.directory}: no checkpoint can be read, all are in {self._corrupt}. Put a "
                "sound copy of one back to go on; to begin again, take another folder"
            )
        return None

    def restore(self, step: int, like: object) -> tuple[Any, Document]:
        """Returns (state, extra) of one checkpoint; only the arrays that `like` names are read.

        Raises InputError where they are missing or of other shapes, CorruptCheckpoint where it
        cannot be read.
        """
        problem, named, extra = None, {}, {}
        try:
            named, extra = self._read(step, to_named(like))
        except CorruptCheckpoint as error:
            problem = str(error)
        if (problem := first_problem("restore", problem)) is not None:
            raise CorruptCheckpoint(problem)
        require_checksums(named, extra.pop("arrays"))
        return from_named(like, named), extra

    def document(self, step: int) -> Document:
        """Returns a checkpoint's JSON document; raises CorruptCheckpoint where it is damaged."""
        path = self._folder(step) / "meta" / "metadata"
        try:
            document = read_object(path)
            for array in checked(_Document, document, path).arrays.values():
                np.dtype(array.dtype)  # TypeError: there is no such type
        except (InputError, TypeError) as error:
            raise CorruptCheckpoint(str(error)) from error
        return document

    def check_arrays(
        self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], saved: Document
    ) -> None:
        """Raises InputError where an array is not among the `saved` ones, or is another there."""
        where = f"checkpoint {self._folder(step)}"
        if missing := sorted(set(wanted) - set(saved)):
            others = f" and {len(missing) - 1} more that are needed" if missing[1:] else ""
            raise InputError(f"{where} has no {missing[0]}{others}")
        for name, x in wanted.items():
            here, there = kind(x), {key: saved[name][key] for key in kind(x)}
            if here != there:
                raise InputError(f"{where} is another model's: {name} is {there}, not {here}")

    def amend(self, step: int, **changes: object) -> None:
        """Changes values in the document of a finished checkpoint, where it can be written."""
        if is_primary():
            document = self.document(step) | changes
            with suppress(OSError):
                write_atomically(self._folder(step) / "meta" / "metadata", json.dumps(document))

    def stream(self, step: int) -> dict[str, Streamed]:
        """Returns the arrays of a checkpoint, to be read by as many rows at a time as lie together.

        Raises CorruptCheckpoint, also while an array is read, where it is not what was written.
        """
        open_ = opener(absolute(self._folder(step)) / "state")
        arrays = self.document(step)["arrays"]
        return {name: stored_array(open_, name, found) for name, found in arrays.items()}

    def wait(self) -> None:
        """Waits until the save under way has ended."""
        if self._under_way is not None:
            self._under_way.has_ended.wait()
            self._ended.append(self._under_way)
            self._under_way = None

    def _read(
        self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]
    ) -> tuple[dict[str, jax.Array], Document]:
        """Returns this process's parts of the wanted arrays, and the JSON document."""
        document = self.document(step)
        self.check_arrays(step, wanted, document["arrays"])
        types = ocp.checkpoint_utils.construct_restore_args(wanted)
        request = ocp.args.PyTreeRestore(wanted, restore_args=types, partial_restore=True)
        saving.silence_orbax()
        reader = ocp.PyTreeCheckpointHandler()
        path = epath.Path(absolute(self._folder(step))) / "state"
        try:
            named = reader.restore(path, args=request)
        except jax.errors.JaxRuntimeError:
            raise  # the devices' trouble, such as too little memory, and not the file's
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise CorruptCheckpoint(str(error).strip().splitlines()[0][:160]) from error
        # Orbax hands back what it was asked for where its own list of arrays lacks one.
        if lost := [name for name, array in named.items() if not isinstance(array, jax.Array)]:
            raise CorruptCheckpoint(f"state/_METADATA does not list {lost[0]}")
        return named, document

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _remove_old(self) -> None:
        """Removes the checkpoints that are not to be kept."""
        steps = self.steps()
        for step in steps[: -self._keep_last] if self._keep_last else []:
            if not self._keep_every or step % self._keep_every:
                saving.remove(self._folder(step))

    def _set_aside(self, step: int, error: CorruptCheckpoint) -> None:
        """Moves a damaged checkpoint to `corrupt/`; raises InputError where it cannot be moved."""
        problem = None
        if is_primary():
            try:
                target = saving.move_aside(self._folder(step), self._corrupt)
            except OSError as failure:
                problem = f"{self._folder(step)} is damaged and cannot be moved: {failure}"
            else:
                print(
                    f"warning: checkpoint {step} is damaged ({error}); moved to {target}, "
                    "falling back to the one before",
                    file=sys.stderr,
                )
        if problem := first_problem("set aside", problem):  # nobody looks before it is moved
            raise InputError(problem)
