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
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

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


@functools.cache
def _silence_abandoned_reads() -> None:
    """Keeps Orbax's noise from the terminal when a damaged checkpoint is met.

    It gives up its other reads at the first that fails; each of them then finds its event loop
    closed and prints a traceback, a hundred lines and more around the one that matters.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


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
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

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

    def wait(self) -> None:
        """Blocks until the save under way has finished."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes the save under way."""
        self._manager.close()

    def _read(self, step: int, wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """This process's parts of the wanted arrays, and the JSON document."""
        meta = self._read_meta(step)
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
            return reader.restore(path, args=request), meta
        except jax.errors.JaxRuntimeError:
            raise  # the devices' trouble, such as too little memory, and not the file's
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise CorruptCheckpoint(str(error).strip().splitlines()[0][:160]) from error

    def _read_meta(self, step: int) -> dict[str, Any]:
        path = self.directory / str(step) / "meta" / "metadata"
        try:
            meta = json.loads(path.read_text())
            if not isinstance(meta, dict) or "arrays" not in meta:
                raise ValueError("it lists no arrays")
        except (OSError, ValueError) as error:
            raise CorruptCheckpoint(f"{path.name}: {error}") from error
        return meta

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
