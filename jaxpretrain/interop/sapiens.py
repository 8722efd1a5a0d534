"""Checkpoints of Sapiens (`.pth`) <-> parameters of `VitMae`, by tables of names.

Released encoders (`sapiens_*_clean.pth`) are flat dicts of tensors. Training checkpoints hold them
under `state_dict`, with the prefix `backbone.`, and their decoders with `neck.`; the tables here
name them so. A table of positions that is the one that we compute is left out, another is carried.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.interop import tables
from jaxpretrain.interop.source import Source, types_of
from jaxpretrain.interop.tables import Row, Table
from jaxpretrain.interop.tensors import Tensor, from_torch, read_torch
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.models.sapiens.positions import sincos_positions
from jaxpretrain.models.sapiens.variants import SAPIENS_SIZES


def _linear(theirs: str, *ours: str) -> Table:
    """Weight and bias of a linear map; of several that are one of theirs, one after another."""
    return (
        Row(f"{theirs}.weight", tuple(f"{name}/kernel" for name in ours)),
        Row(f"{theirs}.bias", tuple(f"{name}/bias" for name in ours)),
    )


def _norm(theirs: str, ours: str) -> Table:
    return Row(f"{theirs}.weight", (f"{ours}/scale",)), Row(f"{theirs}.bias", (f"{ours}/bias",))


def _blocks(theirs: str) -> Table:
    query, key, value = (f"blocks/{{}}/{name}" for name in ("query", "key", "value"))
    return (
        *_norm(f"{theirs}.{{}}.ln1", "blocks/{}/attention_norm"),
        *_linear(f"{theirs}.{{}}.attn.qkv", query, key, value),
        *_linear(f"{theirs}.{{}}.attn.proj", "blocks/{}/output"),
        *_norm(f"{theirs}.{{}}.ln2", "blocks/{}/mlp_norm"),
        *_linear(f"{theirs}.{{}}.ffn.layers.0.0", "blocks/{}/up"),
        *_linear(f"{theirs}.{{}}.ffn.layers.1", "blocks/{}/down"),
    )


TABLES: dict[str, Table] = {
    "encoder": (
        Row("backbone.cls_token", ("cls/embedding",)),
        Row("backbone.pos_embed", ("positions/constant",)),
        *_linear("backbone.patch_embed.projection", "patch"),
        *_blocks("backbone.layers"),
        *_norm("backbone.ln1", "norm"),
    ),
    "decoder": (
        *_linear("neck.decoder_embed", "embed"),
        Row("neck.mask_token", ("mask/embedding",)),
        Row("neck.decoder_pos_embed", ("positions/constant",)),
        *_blocks("neck.decoder_blocks"),
        *_norm("neck.ln1", "norm"),
        *_linear("neck.decoder_pred", "head"),
    ),
}
"""Half of the model -> its table, once tensors have our number of axes (`_with_our_axes`)."""

_ENCODER, _DECODER = "backbone.", "neck."
_PATCH = "backbone.patch_embed.projection.weight"
_TOKENS = ("backbone.cls_token", "neck.mask_token")
_POSITIONS = ("backbone.pos_embed", "neck.decoder_pos_embed")
_SAME_POSITIONS = 1e-4  # two float32 tables of sines differ by less, two layouts by much more

Shapes = dict[str, dict[str, tuple[int, ...]]]
Places = dict[str, dict[str, list[tables.Piece]]]


def open_sapiens(
    path: Path,
    *,
    model: VitMae | None = None,
    size: int | None = None,
    decoder: Literal["required", "fresh"] = "required",
) -> Source:
    """The model in a `.pth` file.

    Args:
      path: a released encoder or a training checkpoint.
      model: its architecture; by default the published one of its width and depth.
      size: side of the images; by default the one that its positions are for. For another, they
        are resized bicubically, as for Sapiens' fine-tuning.
      decoder: what becomes of a file without one, as the released ones are: it is refused, or gets
        a fresh one of seed 0.

    Raises:
      InputError: the file cannot be read, or is not such a model.
    """
    tensors = _with_prefixes(read_torch(path), path)
    model = model or _published(tensors, path)
    trained_size = _side(tensors, path) * model.patch_size
    data = ImageData(size=trained_size if size is None else size)
    model.build(data.example_spec(), platform="cpu")  # refuses a size that does not fit
    if data.size != trained_size:
        side = data.size // model.patch_size
        tensors |= {n: resized(tensors[n], (side, side)) for n in _POSITIONS if n in tensors}
    image_size = data.size, data.size
    model, params = to_params(tensors, model, image_size, str(path))
    places = {
        f"{half}/{name}": pieces
        for half, part in _places(_shapes(model, image_size)).items()
        for name, pieces in part.items()
    }
    origin = types_of({n: p for n, p in places.items() if p[0].theirs in tensors}, tensors)
    if not any(name.startswith("decoder/") for name in params):
        if decoder == "required":
            raise InputError(
                f"{path} holds an encoder without its decoder, as it is released; "
                "--decoder=fresh gives it one that has learned nothing"
            )
        params |= _fresh_decoder(model, data)
        origin["decoder"] = "fresh"
    constants = _stored_positions(tensors) if model.positions == "sincos" else {}
    return Source(model, data, 0, params, path.parent, origin=origin, constants=constants)


def write_sapiens(
    source: Source, output: Path, layout: Literal["clean", "training"] = "clean"
) -> None:
    """Writes `sapiens.pth` into the new folder `output`: float32, with positions, those of the file
    where the model comes from one.

    clean: the flat encoder, as it is released. training: both halves under `state_dict`. All that
    is written is in memory at once.

    Raises:
      InputError: it is no masked autoencoder, or torch is not installed.
    """
    if not isinstance(source.model, VitMae):
        raise InputError(f"{source.folder} holds no masked autoencoder, so Sapiens cannot read it")
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError("a .pth file needs torch; install jaxpretrain[convert]") from None
    (height, width, _), _ = source.data.example_spec()["images"]
    arrays = from_params({**source.constants, **source.params}, source.model, (height, width))
    content: Any = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if layout == "clean":
        content = {
            name.removeprefix(_ENCODER): tensor
            for name, tensor in content.items()
            if name.startswith(_ENCODER)
        }
    output.mkdir()
    torch.save(content if layout == "clean" else {"state_dict": content}, output / "sapiens.pth")


def to_params(
    tensors: Mapping[str, Tensor], model: VitMae, image_size: tuple[int, int], where: str
) -> tuple[VitMae, dict[str, Streamed]]:
    """Our parameters from tensors with prefixes, and the model with what positions it then has.

    Images are (height, width). The decoder is left out when no tensor is its.

    Raises:
      InputError: a tensor is missing, is too many, or has another shape.
    """
    shapes = _shapes(model, image_size)
    if not any(name.startswith(_DECODER) for name in tensors):
        del shapes["decoder"]
    places = _places(shapes)
    flat = {name: _with_our_axes(name, tensor) for name, tensor in tensors.items()}
    expected = {}
    for half, part in shapes.items():
        expected |= tables.their_shapes(places[half], part)
    tables.check(flat, expected, where)
    params = {
        f"{half}/{name}": array
        for half, part in shapes.items()
        for name, array in tables.to_ours(places[half], part, flat).items()
    }
    stored = [name for name in params if name.endswith("/positions/constant")]
    computed = _computed_positions(model, image_size)
    if all(np.abs(tables.whole(params[n]) - computed[n]).max() < _SAME_POSITIONS for n in stored):
        params = {name: array for name, array in params.items() if name not in stored}
        return replace(model, positions="sincos"), params
    return replace(model, positions="stored"), params


def from_params(
    params: Mapping[str, Streamed], model: VitMae, image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Float32 tensors with prefixes; positions that `params` has not are computed."""
    if model.positions == "sincos":
        computed = _computed_positions(model, image_size)
        params = {**{name: _streamed(name, table) for name, table in computed.items()}, **params}
    pieces: dict[str, list[np.ndarray]] = {}
    for half, places in _places(_shapes(model, image_size)).items():
        part = {name: params[f"{half}/{name}"] for name in places}
        for name, array in tables.to_theirs(places, part, tables.FLOAT32):
            pieces.setdefault(name, []).append(array)
    return {name: _with_their_axes(name, np.concatenate(a)) for name, a in pieces.items()}


def resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """A square table [1, 1 + l, d] for another grid (rows, columns); the class token's row stays.

    Bicubic as torch does it with align_corners=False, which is what mmpretrain uses.
    """
    import torch

    table = torch.from_numpy(positions.read(slice(None)).astype(np.float32))
    side, features = math.isqrt(table.shape[1] - 1), table.shape[2]
    square = table[:, 1:].reshape(1, side, side, features).permute(0, 3, 1, 2)
    other = torch.nn.functional.interpolate(square, grid, mode="bicubic", align_corners=False)
    patches = other.permute(0, 2, 3, 1).reshape(1, -1, features)
    return from_torch(torch.cat([table[:, :1], patches], dim=1))


def _with_prefixes(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a file under the names that they have in training."""
    import torch

    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(torch.is_tensor(t) for t in content.values()):
        raise InputError(f"{path} is no dict of tensors, nor has it one under state_dict")
    prefix = "" if any(name.startswith(_ENCODER) for name in content) else _ENCODER
    return {f"{prefix}{name}": from_torch(tensor) for name, tensor in content.items()}


def _published(tensors: Mapping[str, Tensor], path: Path) -> VitMae:
    """The variant of that width and depth."""
    depth = sum(name.endswith(".attn.qkv.bias") for name in tensors if "backbone.layers." in name)
    token = tensors.get("backbone.cls_token")
    width = token.shape[-1] if token and token.shape else 0
    for model in SAPIENS_SIZES.values():
        if (model.d_model, model.num_layers) == (width, depth):
            return model
    raise InputError(
        f"{path}: {depth} layers of width {width} are no published encoder; say which model it is"
    )


def _side(tensors: Mapping[str, Tensor], path: Path) -> int:
    """Patches along a side of the square images that the positions are for."""
    positions = tensors.get("backbone.pos_embed")
    num_patches = positions.shape[1] - 1 if positions and len(positions.shape) == 3 else 0
    side = math.isqrt(num_patches)
    if not num_patches or side**2 != num_patches:
        raise InputError(f"{path}: backbone.pos_embed is not [1, 1 + a square, width]")
    return side


def _shapes(model: VitMae, image_size: tuple[int, int]) -> Shapes:
    """Half -> name -> shape, with stored positions."""
    example = {"images": ((*image_size, 3), "uint8")}
    built = replace(model, positions="stored").build(example, platform="cpu")
    params = jax.eval_shape(built.init, jax.random.key(0))
    return {
        half: {name: tuple(leaf.shape) for name, leaf in to_named(part).items()}
        for half, part in params.items()
    }


def _places(shapes: Shapes) -> Places:
    return {half: tables.place(TABLES[half], part) for half, part in shapes.items()}


def _computed_positions(model: VitMae, image_size: tuple[int, int]) -> dict[str, np.ndarray]:
    rows, columns = (side // model.patch_size for side in image_size)
    return {
        "encoder/positions/constant": np.asarray(sincos_positions(rows, columns, model.d_model)),
        "decoder/positions/constant": np.asarray(
            sincos_positions(rows, columns, model.decoder_d_model)
        ),
    }


def _stored_positions(tensors: Mapping[str, Tensor]) -> dict[str, Streamed]:
    """The tables of positions in a file, as parameters."""
    found = {}
    for half, theirs in zip(TABLES, _POSITIONS, strict=True):
        if theirs in tensors:
            table = tensors[theirs].read(slice(None))[0].astype(np.float32)
            name = f"{half}/positions/constant"
            found[name] = _streamed(name, table)
    return found


def _fresh_decoder(model: VitMae, data: ImageData) -> dict[str, Streamed]:
    built = model.build(data.example_spec(), platform="cpu")
    decoder = jax.jit(lambda rng: built.init(rng)["decoder"])(jax.random.key(0))
    named = {f"decoder/{name}": np.asarray(array) for name, array in to_named(decoder).items()}
    return {name: _streamed(name, array) for name, array in named.items()}


def _with_our_axes(name: str, tensor: Tensor) -> Tensor:
    """[d, 3, p, p] -> [d, p * p * 3]; tokens [1, 1, d] -> [d]; positions [1, t, d] -> [t, d]."""
    s = tensor.shape
    if name == _PATCH and len(s) == 4 and s[1] == 3:
        flat = s[0], math.prod(s[1:])
        return Tensor(
            flat, tensor.dtype, lambda rows: _channels_last(tensor.read(rows)).reshape(-1, flat[1])
        )
    axes = 2 if name in _TOKENS else 1 if name in _POSITIONS else 0
    if axes and len(s) == 3 and s[:axes] == (1,) * axes:
        return Tensor(
            s[axes:], tensor.dtype, lambda rows: tensor.read(slice(None)).reshape(s[axes:])[rows]
        )
    return tensor


def _with_their_axes(name: str, array: np.ndarray) -> np.ndarray:
    if name == _PATCH:
        size = math.isqrt(array.shape[1] // 3)
        patches = array.reshape(-1, size, size, 3).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(patches)
    return array.reshape(1, -1, array.shape[-1]) if name in _TOKENS + _POSITIONS else array


def _channels_last(a: np.ndarray) -> np.ndarray:
    return a.transpose(0, 2, 3, 1)


def _streamed(name: str, array: np.ndarray) -> Streamed:
    return Streamed(array.shape, array.dtype, lambda: tables.parts_of(name, array))
