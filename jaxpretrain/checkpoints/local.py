"""Checkpoints on the disks of the hosts themselves: quick to write, and gone with their host.

Each process keeps the parts of the arrays that its own devices hold, so nothing is shared and
nobody waits. A checkpoint counts where every process of the same mesh has it whole, which they find
out when they start again.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.checkpoints.names import describe, from_named, part_checksum, to_named
from jaxpretrain.checkpoints.orbax import Checkpoints, require_checksums
from jaxpretrain.checkpoints.saving import reason
from jaxpretrain.checkpoints.streamed import CorruptCheckpoint
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, read_object
from jaxpretrain.parallel.distributed import (
    exchange,
    first_problem,
    is_primary,
    num_processes,
    process_id,
)
from jaxpretrain.storage.files import TEMPORARY, unfinished, write_atomically
from jaxpretrain.storage.paths import absolute

_KEPT = 2
_ABANDONED = ".abandoned"
_Index = tuple[tuple[int, int], ...]
"""The first and the last row, exclusive, of a part in each dimension of an array."""


class LocalCheckpoints:
    """The checkpoints of one run on the disk of this host, of this process alone."""

    def __init__(self, directory: Path, workdir: Path) -> None:
        """Takes the folder of the local disk; `workdir` tells runs in it apart.

        Raises InputError where this process cannot write there.
        """
        run = hashlib.sha256(str(absolute(workdir)).encode()).hexdigest()[:16]
        self.directory = directory / run / f"{process_id()}-of-{num_processes()}"
        self._thread: threading.Thread | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
            for path in self.directory.glob(f"*{TEMPORARY}*"):  # of a process that was killed
                shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            raise InputError(f"checkpoint.local_dir={directory}: {error.strerror}") from error

    def steps(self) -> list[int]:
        """Returns the steps that this process has a checkpoint of, in order."""
        return sorted(int(p.name) for p in self.directory.glob("*") if p.name.isdecimal())

    def save(self, step: int, state: object, extra: Mapping[str, object]) -> None:
        """Starts to write a checkpoint; returns once the arrays are copied."""
        self.wait()
        named = to_named(state)
        parts = {
            (name, _bounds(part.index, array.shape)): part.data
            for name, array in named.items()
            for part in array.addressable_shards
        }
        copied = {key: np.array(data) for key, data in parts.items()}
        document = {**extra, "arrays": describe(named)}
        self._thread = threading.Thread(target=self._write, args=(step, copied, document))
        self._thread.start()

    def wait(self) -> None:
        """Waits until the checkpoint under way is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def common_steps(self) -> list[int]:
        """Returns the steps that all processes have the same checkpoint of, the newest first."""
        here = {str(step): self._digest(step) for step in self.steps()}
        others = [json.loads(text) for text in exchange("local checkpoints", json.dumps(here))]
        common = set.intersection(*(set(found.items()) for found in others))
        return sorted((int(step) for step, digest in common if digest), reverse=True)

    def restore(self, step: int, like: object) -> tuple[Any, Document]:
        """Returns (state, extra) of a checkpoint that all processes have.

        `like` is a tree of `jax.ShapeDtypeStruct` with shardings. Raises CorruptCheckpoint in all
        processes where one of them cannot read its parts.
        """
        problem, named, extra = None, {}, {}
        try:
            named, extra = self._read(step, to_named(like))
        except (OSError, InputError, KeyError, ValueError) as error:
            problem = reason(error)
        if (problem := first_problem("local restore", problem)) is not None:
            raise CorruptCheckpoint(problem)
        require_checksums(named, extra.pop("arrays"))
        return from_named(like, named), extra

    def abandon(self, after: int) -> None:
        """Gives the checkpoints after a step another name, so that none is gone on from.

        Those of other numbers of processes too; other processes of this host may do the same.
        """
        for path in self.directory.parent.glob("*/*"):
            if path.name.isdecimal() and int(path.name) > after:
                shutil.rmtree(path.with_suffix(_ABANDONED), ignore_errors=True)
                with suppress(FileNotFoundError):
                    path.rename(path.with_suffix(_ABANDONED))

    def remove(self) -> None:
        """Removes all checkpoints of this process."""
        self.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write(
        self, step: int, parts: Mapping[tuple[str, _Index], np.ndarray], document: Document
    ) -> None:
        folder = self.directory / str(step)
        temporary = unfinished(folder)
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            places, offset = [], 0
            with (temporary / "arrays.bin").open("wb") as file:
                for (name, bounds), array in parts.items():
                    sum_ = part_checksum(array)
                    places.append([name, bounds, str(array.dtype), offset, array.nbytes, sum_])
                    file.write(np.ascontiguousarray(array).tobytes())
                    offset += array.nbytes
            text = json.dumps({**document, "parts": places})
            write_atomically(temporary / "document.json", text)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except OSError as error:  # the durable ones are left
            shutil.rmtree(temporary, ignore_errors=True)
            line = f"warning: step {step:,} is not saved locally: {reason(error)}"
            print(line, file=sys.stderr, flush=True)
        for kind in ("", _ABANDONED):
            found = {
                int(p.stem): p
                for p in self.directory.iterdir()
                if p.stem.isdecimal() and p.suffix == kind
            }
            for old in sorted(found)[:-_KEPT]:
                shutil.rmtree(found[old], ignore_errors=True)

    def _digest(self, step: int) -> str:
        """Returns what tells a checkpoint from others of the same step; "" for a damaged one."""
        with suppress(InputError, OSError):
            arrays = read_object(self.directory / str(step) / "document.json").get("arrays")
            return hashlib.sha256(json.dumps(arrays).encode()).hexdigest()
        return ""

    def _read(
        self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]
    ) -> tuple[dict[str, jax.Array], Document]:
        """Returns the arrays and the document; KeyError or ValueError where a part is not there."""
        folder, parts = self.directory / str(step), {}
        document = read_object(folder / "document.json")
        with (folder / "arrays.bin").open("rb") as file:
            for name, bounds, dtype, offset, num_bytes, sum_ in document.pop("parts"):
                file.seek(offset)
                content = np.frombuffer(file.read(num_bytes), jnp.dtype(dtype))
                array = content.reshape([last - first for first, last in bounds])
                if part_checksum(array) != sum_:
                    raise ValueError(f"a part of {name} reads other than it was written")
                parts[name, tuple(map(tuple, bounds))] = array
        named = {}
        for name, x in wanted.items():
            assert x.sharding is not None
            places = x.sharding.addressable_devices_indices_map(x.shape)
            arrays = [
                jax.device_put(parts[name, _bounds(index or (), x.shape)], device)
                for device, index in places.items()
            ]
            if any(array.dtype != x.dtype for array in arrays):
                raise ValueError(f"{name} is of another type")
            named[name] = jax.make_array_from_single_device_arrays(x.shape, x.sharding, arrays)
        return named, document


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> _Index:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def restore_newest(
    checkpoints: Checkpoints, local: LocalCheckpoints | None, like: object
) -> tuple[int, Any, Document] | None:
    """Returns (step, state, extra) of the newest sound checkpoint, of the run's folder or of disks.

    None: there is none. All processes call it together and get the same step. Older ones are read
    only where a newer one is damaged. For `like`, see `LocalCheckpoints.restore`; for damaged
    checkpoints of the folder, `Checkpoints.restore_newest`.
    """
    if local is None:
        return checkpoints.restore_newest(like)
    for step in local.common_steps():
        if (found := checkpoints.restore_newest(like, first=step)) is not None:
            return found
        try:
            return (step, *local.restore(step, like))
        except CorruptCheckpoint as error:
            if is_primary():
                line = f"local checkpoint {step} is left out ({error})"
                print(f"warning: {line}", file=sys.stderr, flush=True)
    return checkpoints.restore_newest(like)
