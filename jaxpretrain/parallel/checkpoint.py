"""Checkpoints: flat named arrays plus a small JSON document, written by Orbax.

A checkpoint knows nothing of classes: `params/blocks/0/query/kernel`, `optimizer/adam/mu/...`,
`step`. Saving is asynchronous and atomic. Each checkpoint carries the shape, the dtype and an
integer checksum of every array. Checksums are taken on the devices before the save and compared
after a restore, because storage below Orbax can hand back changed bytes without an error.

All processes of a run save and restore together, each its own parts of the arrays, in one folder
that all of them see. What one cannot read counts as unreadable for all.
"""

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxpretrain.config.documents import checked, read_object
from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.distributed import exchange, first_problem, is_primary


class CorruptCheckpoint(Exception):
    """A checkpoint cannot be read, or reads other than it was written."""


def to_named(tree: Any) -> dict[str, Any]:
    """Flattens a tree of dicts, named tuples and dataclasses to {"a/b/c": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def from_named(like: Any, named: dict[str, Any]) -> Any:
    """The tree `like` with its leaves replaced by the arrays of those names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: named[_name(path)], like)


def _name(path: tuple[Any, ...]) -> str:
    parts = []
    for key in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return "/".join(parts)


def _kind(x: Any) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


@jax.jit
def _checksums(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A wrapping uint32 sum over the bits of each array: exact, whatever the sharding."""

    def checksum(x: jax.Array) -> jax.Array:
        bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32), dtype=jnp.uint32)

    return jax.tree.map(checksum, named)


@dataclass(frozen=True)
class Streamed:
    """An array that is made part by part, so that it need not be in memory whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterable[np.ndarray]]
    """Makes the parts anew: consecutive rows of the first axis."""


def write_streamed(
    directory: Path, step: int, arrays: Mapping[str, Streamed], extra: dict[str, Any]
) -> None:
    """Writes the checkpoint `directory/<step>` with the arrays of those names, one after another.

    It reads as one that was saved. It is not atomic: `directory` must be one that nobody looks at
    before this has returned.
    """
    folder = directory.absolute() / str(step)
    found = {
        name: {**_kind(array), "checksum": _write_array(folder / "state" / name, array)}
        for name, array in arrays.items()
    }
    # What Orbax wants to know of a tree, in its own words: a dict of arrays, each a Zarr folder.
    tree = {
        str((name,)): {
            "key_metadata": [{"key": name, "key_type": 2}],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
        for name in arrays
    }
    documents = {
        "_CHECKPOINT_METADATA": {},
        "state/_METADATA": {"tree_metadata": tree, "use_ocdbt": False, "use_zarr3": False},
        "meta/metadata": {**extra, "arrays": found},
    }
    for name, document in documents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))


def _write_array(folder: Path, array: Streamed) -> int:
    """Writes a Zarr array; returns its checksum, that of `_checksums`."""
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {
            "chunks": _chunks(array.shape, array.dtype.itemsize),
            "compressor": {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1},
        },
        "store_data_equal_to_fill_value": True,  # a restore takes chunks that lack for damage
    }
    store = ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
    checksum = row = 0
    for part in array.parts():
        checksum += _checksum(part)
        end = row + (len(part) if part.ndim else 0)
        (store[row:end] if part.ndim else store).write(part).result()
        row = end
    return checksum % 2**32


def _rows_that_lie_together(store: Any) -> list[Any]:
    """Rows of the first axis of a TensorStore whose chunks must be read together anyway."""
    if not store.shape:
        return [...]
    num_rows = store.chunk_layout.read_chunk.shape[0]
    return [
        slice(row, min(row + num_rows, store.shape[0]))
        for row in range(0, store.shape[0], num_rows)
    ]


def _checksum(part: np.ndarray) -> int:
    """What a part of an array adds to its checksum, on the host."""
    bits = np.ascontiguousarray(part).reshape(-1).view(f"uint{8 * part.itemsize}")
    return int(np.sum(bits, dtype=np.uint32))


def _chunks(shape: tuple[int, ...], itemsize: int, limit: int = 2**26) -> list[int]:
    """Chunks of whole rows, up to 64 MiB; a layer of a stack has its own."""
    room, chunks = limit // itemsize, []
    for size in reversed(shape):
        chunks.insert(0, min(size, max(1, room)))
        room //= size
    return [1, *chunks[1:]] if len(shape) > 2 else chunks


@functools.cache
def _silence_abandoned_reads() -> None:
    """Keeps Orbax's noise from the terminal when a damaged checkpoint is met.

    It gives up its other reads at the first that fails; each of them then finds its event loop
    closed and prints a traceback, a hundred lines and more around the one that matters. Now and
    then asyncio logs the same of a read that had failed too.
    """
    logging.getLogger("asyncio").addFilter(lambda line: "never retrieved" not in line.getMessage())
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


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
        """Keeps the newest `keep_last` and, for good, those at multiples of `keep_every` steps."""
        self.directory = directory
        self._corrupt = directory.parent / "corrupt"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep_last,
            keep_period=None if read_only else keep_every,
            create=not read_only,  # Orbax's own read_only warns at each use
        )
        try:
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        except ValueError as error:  # Orbax can do without this file
            bad = f"{directory}: a _CHECKPOINT_METADATA is damaged"
            raise InputError(f"{bad}: {error}; delete that file") from error

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Starts saving; returns once the arrays are copied and may be donated."""
        named = to_named(state)
        sums = jax.device_get(_checksums(named))
        arrays = {name: {**_kind(x), "checksum": int(sums[name])} for name, x in named.items()}
        document = {**extra, "arrays": arrays}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(named), meta=ocp.args.JsonSave(document)
            ),
            force=True,  # else a step below the newest would not be saved, without a word
        )

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
                f"{self.directory}: no checkpoint can be read, all are in {self._corrupt}; delete "
                "that folder to begin again"
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
        found = jax.device_get(_checksums(named))
        for name, value in found.items():
            if int(value) != saved[name]["checksum"]:
                raise CorruptCheckpoint(f"the checksum of {name} differs")
        return from_named(like, named), extra

    def document(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays of a checkpoint, and about each of them in `arrays`.

        Raises:
          CorruptCheckpoint: it cannot be read.
        """
        path = self.directory / str(step) / "meta" / "metadata"
        try:
            document = read_object(path)
            for array in checked(_Document, document, path).arrays.values():
                np.dtype(array.dtype)  # TypeError: there is no such type
        except (InputError, TypeError) as error:
            raise CorruptCheckpoint(str(error)) from error
        return document

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
                    for rows in _rows_that_lie_together(store):
                        part = np.asarray(store[rows].read().result())
                        checksum += _checksum(part)
                        yield part
                except ValueError as error:  # all that TensorStore raises
                    raise CorruptCheckpoint(str(error).strip().splitlines()[0][:160]) from error
                if checksum % 2**32 != found["checksum"]:
                    raise CorruptCheckpoint(f"the checksum of {name} differs")

            return Streamed(tuple(found["shape"]), np.dtype(found["dtype"]), parts)

        arrays = self.document(step)["arrays"]
        return {name: stream(name, found) for name, found in arrays.items()}

    def wait(self) -> None:
        """Blocks until the save under way has finished."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes the save under way."""
        self._manager.close()

    def _read(self, step: int, wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """This process's parts of the wanted arrays, and the JSON document."""
        meta = self.document(step)
        self._check_arrays(step, wanted, meta["arrays"])
        restore_args = jax.tree.map(
            lambda s: ocp.ArrayRestoreArgs(
                sharding=s.sharding, global_shape=s.shape, dtype=s.dtype, strict=True
            ),
            wanted,
        )
        request = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        _silence_abandoned_reads()
        # Not by the manager: it would have processes that can read wait for one that cannot.
        reader = ocp.PyTreeCheckpointHandler()
        path = self._manager.directory / str(step) / "state"
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

    def _check_arrays(
        self, step: int, wanted: dict[str, Any], saved: dict[str, dict[str, Any]]
    ) -> None:
        where = f"checkpoint {self.directory / str(step)}"
        missing = sorted(set(wanted) - set(saved))
        if missing:
            raise InputError(
                f"{where} has no {missing[0]}"
                + (f" and {len(missing) - 1} more that are needed" if missing[1:] else "")
            )
        for name, x in wanted.items():
            here, there = _kind(x), {key: saved[name][key] for key in _kind(x)}
            if here != there:
                raise InputError(f"{where} is another model's: {name} is {there}, not {here}")

    def _set_aside(self, step: int, error: CorruptCheckpoint) -> None:
        if is_primary():
            target = self._corrupt / str(step)
            target.parent.mkdir(exist_ok=True)
            number = 1
            while target.exists():
                number += 1
                target = target.with_name(f"{step}.{number}")
            os.rename(self.directory / str(step), target)
            print(
                f"warning: checkpoint {step} is damaged ({error}); moved to {target}, "
                "falling back to the one before",
                file=sys.stderr,
            )
        exchange("set aside", "")  # nobody looks before it is moved
        self._manager.reload()
