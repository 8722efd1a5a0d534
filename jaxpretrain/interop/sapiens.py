"""Checkpoints of Sapiens (`.pth`) <-> parameters of `VitMae`, by tables of names.

Released encoders (`sapiens_*_clean.pth`) are flat dicts of tensors. Training checkpoints hold them
under `state_dict`, with the prefix `backbone.`, and their decoders with `neck.`; the tables here
name them so. A table of positions that is the one that we compute is left out, another is carried.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.interop import tables
from jaxpretrain.interop.source import Source, param_shapes, types_of
from jaxpretrain.interop.tables import Table, TensorRow
from jaxpretrain.interop.tensors import Tensor, from_torch, read_torch, require_torch
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.models.sapiens.patches import sincos_positions
from jaxpretrain.models.sapiens.variants import SAPIENS_SIZES
from jaxpretrain.models.stack import is_stacked


def _linear(theirs: str, *ours: str) -> Table:
    """Returns the rows of a linear map, in which several of ours may be joined."""
    return (
        TensorRow(f"{theirs}.weight", tuple(f"{name}/kernel" for name in ours)),
        TensorRow(f"{theirs}.bias", tuple(f"{name}/bias" for name in ours)),
    )


def _norm(theirs: str, ours: str) -> Table:
    return TensorRow(f"{theirs}.weight", (f"{ours}/scale",)), TensorRow(
        f"{theirs}.bias", (f"{ours}/bias",)
    )


def _blocks(theirs: str, half: str) -> Table:
    theirs, ours = f"{theirs}.{{}}", f"{half}/blocks/{{}}"
    return (
        *_norm(f"{theirs}.ln1", f"{ours}/attention_norm"),
        *_linear(f"{theirs}.attn.qkv", *(f"{ours}/{name}" for name in ("query", "key", "value"))),
        *_linear(f"{theirs}.attn.proj", f"{ours}/output"),
        *_norm(f"{theirs}.ln2", f"{ours}/mlp_norm"),
        *_linear(f"{theirs}.ffn.layers.0.0", f"{ours}/up"),
        *_linear(f"{theirs}.ffn.layers.1", f"{ours}/down"),
    )


TABLE: Table = (
    TensorRow("backbone.cls_token", ("encoder/cls/embedding",)),
    TensorRow("backbone.pos_embed", ("encoder/positions/constant",)),
    *_linear("backbone.patch_embed.projection", "encoder/patch"),
    *_blocks("backbone.layers", "encoder"),
    *_norm("backbone.ln1", "encoder/norm"),
    *_linear("neck.decoder_embed", "decoder/embed"),
    TensorRow("neck.mask_token", ("decoder/mask/embedding",)),
    TensorRow("neck.decoder_pos_embed", ("decoder/positions/constant",)),
    *_blocks("neck.decoder_blocks", "decoder"),
    *_norm("neck.ln1", "decoder/norm"),
    *_linear("neck.decoder_pred", "decoder/head"),
)
"""The tensors of both halves, with our number of axes (`_with_our_axes`)."""

_ENCODER, _DECODER = "backbone.", "neck."
_PATCH = "backbone.patch_embed.projection.weight"
_TOKENS = ("backbone.cls_token", "neck.mask_token")
_POSITIONS = {
    "encoder/positions/constant": "backbone.pos_embed",
    "decoder/positions/constant": "neck.decoder_pos_embed",
}
_WITH_BATCH_AXIS = (*_TOKENS, *_POSITIONS.values())
_SAME_POSITIONS = 1e-4
"""The largest difference of two float32 tables of one layout; two layouts differ by much more."""


def open_sapiens(
    path: Path,
    *,
    model: VitMae | None = None,
    size: int | None = None,
    decoder: Literal["required", "fresh"] = "required",
) -> Source:
    """Opens the model in a `.pth` file, a released encoder or a training checkpoint.

    `model` is by default the published one of its width and depth. `size`, the side of images, is
    by default the one that its positions are for; for another, they are resized bicubically, as for
    Sapiens' fine-tuning. A file without a decoder, such as a released one, is refused, or gets a
    fresh one of seed 0.

    Raises InputError where the file cannot be read, or is not such a model.
    """
    tensors = _with_prefixes(read_torch(path), path)
    model = model or _published(tensors, path)
    trained_size = _side(tensors, path) * model.patch_size
    data = ImageData(size=trained_size if size is None else size)
    model.build(data.example_spec(), platform="cpu")  # refuses a size that does not fit
    if data.size != trained_size:
        side = data.size // model.patch_size
        stored = (name for name in _POSITIONS.values() if name in tensors)
        tensors |= {name: resized(tensors[name], (side, side)) for name in stored}
    image_size = data.size, data.size
    model, params = to_params(tensors, model, image_size, str(path))
    places = tables.place(TABLE, _shapes(model, image_size))
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
    """Writes `sapiens.pth` into the new folder `output`, in float32 and with positions.

    Positions are those of the file that the model comes from, if any. The layout clean is the flat
    encoder, as it is released; training has both halves under `state_dict`. The whole content is in
    memory at once.

    Raises InputError where it is no masked autoencoder, or torch is not installed.
    """
    if not isinstance(source.model, VitMae):
        raise InputError(f"{source.folder} holds no masked autoencoder, so Sapiens cannot read it")
    torch = require_torch("a .pth file needs torch")
    (height, width, _), _ = source.data.example_spec()["images"]
    arrays = from_params({**source.constants, **source.params}, source.model, (height, width))
    content = {name: torch.from_numpy(array) for name, array in arrays.items()}
    encoder = {n.removeprefix(_ENCODER): t for n, t in content.items() if n.startswith(_ENCODER)}
    output.mkdir()
    torch.save(encoder if layout == "clean" else {"state_dict": content}, output / "sapiens.pth")


def to_params(
    tensors: Mapping[str, Tensor], model: VitMae, image_size: tuple[int, int], where: str
) -> tuple[VitMae, dict[str, Streamed]]:
    """Returns the model with the positions of a file, and our parameters from its tensors.

    Images are (height, width). The decoder is left out where the file has none of its tensors.

    Raises InputError where a tensor is missing, superfluous, or of another shape.
    """
    shapes = _shapes(model, image_size)
    if not any(name.startswith(_DECODER) for name in tensors):
        shapes = {name: shape for name, shape in shapes.items() if name.startswith("encoder/")}
    places = tables.place(TABLE, shapes)
    flat = {name: _with_our_axes(name, tensor) for name, tensor in tensors.items()}
    tables.check(flat, tables.their_shapes(places, shapes), where)
    params = tables.to_ours(places, shapes, flat)
    stored = [name for name in _POSITIONS if name in params]
    computed = _computed_positions(model, image_size)
    if all(np.abs(tables.whole(params[n]) - computed[n]).max() < _SAME_POSITIONS for n in stored):
        params = {name: array for name, array in params.items() if name not in stored}
        return replace(model, positions="sincos"), params
    return replace(model, positions="stored"), params


def from_params(
    params: Mapping[str, Streamed], model: VitMae, image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Returns float32 tensors with prefixes; positions that `params` does not have are computed."""
    if model.positions == "sincos":
        computed = _computed_positions(model, image_size)
        params = {**{name: _streamed(name, table) for name, table in computed.items()}, **params}
    pieces: dict[str, list[np.ndarray]] = {}
    for name, array in tables.to_theirs(
        tables.place(TABLE, _shapes(model, image_size)), params, tables.FLOAT32
    ):
        pieces.setdefault(name, []).append(array)
    return {name: _with_their_axes(name, np.concatenate(a)) for name, a in pieces.items()}


def resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns a square table [1, 1 + l, d] for another grid (rows, columns).

    The class token's row stays. Patches are interpolated bicubically by torch with
    align_corners=False, as in mmpretrain.
    """
    torch = require_torch("resized positions need torch")
    table = torch.from_numpy(positions.read(slice(None)).astype(np.float32))
    side, features = math.isqrt(table.shape[1] - 1), table.shape[2]
    square = table[:, 1:].reshape(1, side, side, features).permute(0, 3, 1, 2)
    other = torch.nn.functional.interpolate(square, grid, mode="bicubic", align_corners=False)
    patches = other.permute(0, 2, 3, 1).reshape(1, -1, features)
    return from_torch(torch.cat([table[:, :1], patches], dim=1))


def _with_prefixes(content: object, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file under the names that they have in training."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(hasattr(t, "detach") for t in content.values()):
        raise InputError(f"{path} is no dict of tensors, nor has it one under state_dict")
    prefix = "" if any(name.startswith(_ENCODER) for name in content) else _ENCODER
    return {f"{prefix}{name}": from_torch(tensor) for name, tensor in content.items()}


def _published(tensors: Mapping[str, Tensor], path: Path) -> VitMae:
    """Returns the variant of the width and depth of the tensors."""
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
    """Returns the patches along a side of the square images that the positions are for."""
    positions = tensors.get("backbone.pos_embed")
    num_patches = positions.shape[1] - 1 if positions and len(positions.shape) == 3 else 0
    side = math.isqrt(num_patches)
    if not num_patches or side**2 != num_patches:
        raise InputError(f"{path}: backbone.pos_embed is not [1, 1 + a square, width]")
    return side


def _shapes(model: VitMae, image_size: tuple[int, int]) -> tables.Shapes:
    """Returns the shapes of all parameters, stored positions included."""
    example = {"images": ((*image_size, 3), "uint8")}
    return param_shapes(replace(model, positions="stored"), example)


def _computed_positions(model: VitMae, image_size: tuple[int, int]) -> dict[str, np.ndarray]:
    rows, columns = (side // model.patch_size for side in image_size)
    widths = model.d_model, model.decoder_d_model
    tables = (np.asarray(sincos_positions(rows, columns, width)) for width in widths)
    return dict(zip(_POSITIONS, tables, strict=True))


def _stored_positions(tensors: Mapping[str, Tensor]) -> dict[str, Streamed]:
    """Returns the tables of positions in a file, as parameters."""
    return {
        ours: _streamed(ours, tensors[theirs].read(slice(None))[0].astype(np.float32))
        for ours, theirs in _POSITIONS.items()
        if theirs in tensors
    }


def _fresh_decoder(model: VitMae, data: ImageData) -> dict[str, Streamed]:
    built = model.build(data.example_spec(), platform="cpu")
    decoder = jax.jit(lambda rng: built.init(rng)["decoder"])(jax.random.key(0))
    named = {f"decoder/{name}": np.asarray(array) for name, array in to_named(decoder).items()}
    return {name: _streamed(name, array) for name, array in named.items()}


def _with_our_axes(name: str, tensor: Tensor) -> Tensor:
    """Turns [d, 3, p, p] to [d, p * p * 3], and takes leading axes of tokens and positions off."""
    s, num_leading = tensor.shape, 2 if name in _TOKENS else 1
    if name == _PATCH and len(s) == 4 and s[1] == 3:
        shape = s[0], math.prod(s[1:])
        read = lambda rows: tensor.read(rows).transpose(0, 2, 3, 1).reshape(-1, shape[1])  # noqa: E731
    elif name in _WITH_BATCH_AXIS and len(s) == 3 and s[:num_leading] == (1,) * num_leading:
        shape = s[num_leading:]
        read = lambda rows: tensor.read(slice(None)).reshape(shape)[rows]  # noqa: E731
    else:
        return tensor
    return Tensor(shape, tensor.dtype, read)


def _with_their_axes(name: str, array: np.ndarray) -> np.ndarray:
    if name == _PATCH:
        size = math.isqrt(array.shape[1] // 3)
        patches = array.reshape(-1, size, size, 3).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(patches)
    return array.reshape(1, -1, array.shape[-1]) if name in _WITH_BATCH_AXIS else array


def _streamed(name: str, array: np.ndarray) -> Streamed:
    parts = np.split(array, len(array)) if is_stacked(name) else [array]
    return Streamed(array.shape, array.dtype, lambda: parts)
