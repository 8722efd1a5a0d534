"""Tables of names: the tensors of another program, and our parameters in them.

One table serves both directions. A kernel is [in, out] here and [out, in] in torch; everything
else lies the same way. Our layers are stacked, `blocks/<position>/...`; theirs are numbered.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.tensors import Tensor, some
from jaxpretrain.models.stack import is_stacked, place_of

FLOAT32 = np.dtype(np.float32)

EXACT_IN_FLOAT32 = ("float32", "bfloat16", "float16")
"""The types that float32 can hold without rounding."""


@dataclass(frozen=True)
class TensorRow:
    """One of their tensors, and our parameters in it."""

    theirs: str
    """The name of the tensor; {} stands for the number of the layer."""
    ours: tuple[str, ...]
    """Our parameters along the first axis of the tensor; {} stands for the position in the layer
    pattern. A model that has none of them does not have the tensor."""


Table = tuple[TensorRow, ...]
"""The rows of one kind of checkpoint."""


@dataclass(frozen=True)
class Piece:
    """The place of one of our parameters, or of one layer of a stack, in their tensors."""

    theirs: str
    rows: slice


Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of arrays, by name."""


def place(table: Table, shapes: Shapes) -> dict[str, list[Piece]]:
    """Returns the pieces of each of our parameters: those of its layers, or the only one."""
    pattern = len({at.position for name in shapes if (at := place_of(name)) is not None})
    found: dict[str, list[Piece]] = {}
    for row in table:
        for position in range(pattern) if "{}" in row.theirs else (0,):
            ours = [name.format(position) for name in row.ours]
            if not all(name in shapes for name in ours):
                continue
            lengths = [_their_shape(name, shapes[name])[0] for name in ours]
            ends = list(itertools.accumulate(lengths))
            num_layers = shapes[ours[0]][0] if is_stacked(ours[0]) else 1
            for name, end, length in zip(ours, ends, lengths, strict=True):
                found[name] = [
                    Piece(row.theirs.format(position + i * pattern), slice(end - length, end))
                    for i in range(num_layers)
                ]
    assert set(found) == set(shapes), f"no row for {set(shapes) - set(found)}"
    return found


def their_shapes(places: Mapping[str, list[Piece]], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that their tensors must have."""
    found: dict[str, tuple[int, ...]] = {}
    for name, pieces in places.items():
        rest = _their_shape(name, shapes[name])[1:]
        for piece in pieces:
            rows = max(piece.rows.stop, found.get(piece.theirs, (0,))[0])
            found[piece.theirs] = (rows, *rest)
    return found


def check(
    tensors: Mapping[str, Tensor],
    expected: Shapes,
    where: str,
    ignored: tuple[str, ...] = (),
) -> None:
    """Raises InputError for tensors that lack, differ, or are neither expected nor `ignored`."""
    if missing := [name for name in expected if name not in tensors]:
        raise InputError(f"{where}: {some(missing)} missing")
    too_many = [
        name
        for name in tensors
        if name not in expected and not any(fnmatchcase(name, pattern) for pattern in ignored)
    ]
    if too_many:
        raise InputError(f"{where}: {some(too_many)} not part of the model that its config says")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise InputError(
                f"{where}: {name} is {list(tensors[name].shape)}, but its config says {list(shape)}"
            )
        if tensors[name].dtype not in EXACT_IN_FLOAT32:
            raise InputError(
                f"{where}: {name} is {tensors[name].dtype}, which float32 cannot hold exactly"
            )


def to_ours(
    places: Mapping[str, list[Piece]], shapes: Shapes, tensors: Mapping[str, Tensor]
) -> dict[str, Streamed]:
    """Returns our parameters in float32, read from their tensors a layer at a time."""

    def stream(name: str) -> Streamed:
        def parts() -> Iterator[np.ndarray]:
            for piece in places[name]:
                part = tensors[piece.theirs].read(piece.rows).astype(np.float32)
                part = np.ascontiguousarray(_turn(name, part))
                yield part[None] if is_stacked(name) else part

        return Streamed(shapes[name], FLOAT32, parts)

    return {name: stream(name) for name in places}


def to_theirs(
    places: Mapping[str, list[Piece]],
    params: Mapping[str, Streamed],
    dtype: np.dtype,
    dtypes: Mapping[str, np.dtype] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields their tensors in our order, joined ones in pieces; some may differ from `dtype`."""
    for name, pieces in places.items():
        for piece, layer in zip(pieces, layers_of(name, params[name]), strict=True):
            yield piece.theirs, _turn(name, layer.astype((dtypes or {}).get(piece.theirs, dtype)))


def layers_of(name: str, array: Streamed) -> Iterator[np.ndarray]:
    """Returns the layers of a stack, or the whole of any other array."""
    if is_stacked(name):
        return (layer for part in array.parts() for layer in part)
    return iter([whole(array)])


def whole(array: Streamed) -> np.ndarray:
    """Returns a whole array, which is in memory once."""
    result = np.empty(array.shape, array.dtype)
    row = 0
    for part in array.parts():
        result[row : row + len(part)] = part
        row += len(part)
    return result


def _their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    one = shape[1:] if is_stacked(name) else shape
    return one[::-1] if _is_kernel(name) else one


def _turn(name: str, array: np.ndarray) -> np.ndarray:
    return array.T if _is_kernel(name) else array


def _is_kernel(name: str) -> bool:
    return name.endswith("/kernel")
