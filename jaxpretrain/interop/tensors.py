"""Tensors in other programs' files, read only where and when they are asked for.

A reader gives `{name: Tensor}`: shapes at once, contents later and by rows, so that a model larger
than memory can be read.
"""

import json
import math
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpretrain.config.errors import InputError, install
from jaxpretrain.config.serialize import checked, read_object

INDEX = "model.safetensors.index.json"
"""The file that names the shard of each tensor."""
SINGLE = "model.safetensors"
"""The only file of a model that is not sharded."""

SHARD_BYTES = 5 * 10**9
"""The largest size of a written file in bytes, unless one tensor is larger."""


@dataclass(frozen=True)
class _Index:
    """The content of a `model.safetensors.index.json` that is read."""

    weight_map: dict[str, str]
    """The file of each tensor, by its name."""


_SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """The name of the dtype, such as "bfloat16"."""
    read: Callable[[slice], np.ndarray]
    """A function that reads rows of the first axis, slice(None) for all; a scalar is read whole."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of one file; InputError where it is missing, cut off or another file."""
    from safetensors import SafetensorError, safe_open

    try:
        # Not mapped into memory: pages once read would stay there with the file.
        file: Any = safe_open(path, framework="numpy", backend="pread")
        names = list(file.keys())
        return {name: _view(file, name) for name in names}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'no such file'}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {error}") from error


def _view(file: Any, name: str) -> Tensor:
    view = file.get_slice(name)
    shape, dtype = tuple(view.get_shape()), str(view.get_dtype())
    read = view.__getitem__ if shape else lambda rows: file.get_tensor(name)
    return Tensor(shape, _SAFETENSORS_TYPES.get(dtype, dtype), read)


def read_safetensors_folder(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of `model.safetensors` or its shards; InputError for wrong files."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / SINGLE).exists():
            raise InputError(f"{folder} has neither {SINGLE} nor {INDEX}")
        return read_safetensors(folder / SINGLE)
    where = checked(_Index, read_object(index), index).weight_map
    shards = sorted(set(where.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise InputError(f"{index} names {shard!r}, which is not a file of that folder")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise InputError(f"{index}: {some(absent)} not there")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= read_safetensors(folder / shard)
    if lost := sorted(set(where) - set(tensors)):
        raise InputError(f"{index}: no shard holds {some(lost)}")
    return tensors


def read_torch(path: Path) -> Any:
    """Returns what `torch.save` wrote; InputError for more than tensors in dicts and lists."""
    torch = require_torch(f"{path.name} needs torch to be read")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        reason = next(iter(str(error).split("\n", 1)), "")
        raise InputError(f"{path} holds more than tensors, so it was not read: {reason}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} is damaged or not a torch file: {reason}") from error


def require_torch(complaint: str) -> ModuleType:
    """Returns torch, which is optional; without it, InputError that begins with the complaint."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(f"{complaint}: {install('convert')}") from None
    return torch


def from_torch(tensor: Any) -> Tensor:
    """Returns a torch tensor as one that is read as numpy arrays."""
    dtype = str(tensor.dtype).removeprefix("torch.")

    def read(rows: slice) -> np.ndarray:
        part = tensor.detach()[rows] if tensor.shape else tensor.detach()
        if dtype == "bfloat16":  # which torch does not hand to numpy
            int16 = require_torch("bfloat16 needs torch").int16
            return part.contiguous().view(int16).numpy().view(jnp.bfloat16)
        return part.numpy()

    return Tensor(tuple(tensor.shape), dtype, read)


Spec = tuple[tuple[int, ...], np.dtype]
"""The shape and the dtype of a tensor to write."""


def write_safetensors_folder(
    folder: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors in the order of `specs`, to one file or shards; one is in memory at a time."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, spec in specs.items():
        if (size := _num_bytes(spec)) > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    source = iter(tensors)
    where = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / file, {name: specs[name] for name in names}, source)
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(map(_num_bytes, specs.values()))
        document = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def _write_safetensors(
    path: Path, specs: Mapping[str, Spec], tensors: Iterator[tuple[str, np.ndarray]]
) -> None:
    """Writes the length of the header in 8 bytes, the header as JSON, then tensor by tensor."""
    codes = {name: code for code, name in _SAFETENSORS_TYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in specs.items():
        start, end = end, end + _num_bytes((shape, dtype))
        code = codes[dtype.name]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for expected, (shape, dtype) in specs.items():
            name, tensor = next(tensors)
            assert (name, tensor.shape, tensor.dtype) == (expected, shape, dtype)
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def _num_bytes(spec: Spec) -> int:
    shape, dtype = spec
    return math.prod(shape) * dtype.itemsize


def some(names: list[str]) -> str:
    """Returns the first name and the number of others, "x is" or "x and 3 more are"."""
    return f"{names[0]} and {len(names) - 1} more are" if names[1:] else f"{names[0]} is"
