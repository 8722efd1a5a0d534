"""Checkpoints of OLMo's own trainer, as it unshards them, with the moments of AdamW.

Source: allenai/OLMo `olmo/model.py`, `olmo/config.py`, `olmo/checkpoint.py` (FullCheckpointer),
`olmo/safetensors_util.py`. A folder holds `config.yaml`, `model.pt` or `model.safetensors`, and
maybe `optim.pt` or `optim.safetensors`.
"""

import base64
import binascii
import pickletools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.interop import source, tables
from jaxpretrain.interop.olmo_config import OlmoKeys, read_decoder
from jaxpretrain.interop.tables import Table, TensorRow
from jaxpretrain.interop.tensors import Tensor, from_torch, read_safetensors, read_torch

_BLOCK = "transformer.blocks.{}."
TABLE: Table = (
    TensorRow("transformer.wte.weight", ("embed/embedding",)),
    TensorRow(
        _BLOCK + "att_proj.weight",
        ("blocks/{}/query/kernel", "blocks/{}/key/kernel", "blocks/{}/value/kernel"),
    ),
    TensorRow(_BLOCK + "attn_out.weight", ("blocks/{}/output/kernel",)),
    # The half that SiLU is taken of comes second.
    TensorRow(_BLOCK + "ff_proj.weight", ("blocks/{}/up/kernel", "blocks/{}/gate/kernel")),
    TensorRow(_BLOCK + "ff_out.weight", ("blocks/{}/down/kernel",)),
    TensorRow(_BLOCK + "attn_norm.weight", ("blocks/{}/attention_norm/scale",)),
    TensorRow(_BLOCK + "ff_norm.weight", ("blocks/{}/mlp_norm/scale",)),
    TensorRow(_BLOCK + "q_norm.weight", ("blocks/{}/query_norm/scale",)),
    TensorRow(_BLOCK + "k_norm.weight", ("blocks/{}/key_norm/scale",)),
    TensorRow("transformer.ln_f.weight", ("final_norm/scale",)),
    TensorRow("transformer.ff_out.weight", ("head/kernel",)),
)

_MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq"}


def open_olmo(folder: Path) -> source.Source:
    """Opens the model of a folder; only names and shapes of its tensors are read now.

    Raises InputError where a file is missing, damaged or would run code, or no `Decoder` is this
    model.
    """
    source.refuse_olmo_core(folder)
    keys = OlmoKeys(folder / "config.yaml")
    model = read_decoder(keys)
    keys.check()
    source.num_token_ids(folder, model.embedding_rows)  # a tokenizer that lies there must fit
    data = source.text_data(keys.size("model.max_sequence_length", 1024), model.embedding_rows)
    shapes = source.param_shapes(model, data.example_spec())
    places = tables.place(TABLE, shapes)
    expected = tables.their_shapes(places, shapes)

    group_size = keys.size("model.block_group_size", 1)
    read = _read(folder, "model")
    tensors = {_clean(path[-1], group_size): tensor for path, tensor in read.items()}
    tables.check(tensors, expected, str(folder))
    state: dict[tuple[str, str], Tensor] = {}
    if any((folder / f"optim.{kind}").exists() for kind in ("pt", "safetensors")):
        state = {
            (_clean(path[1], group_size), str(path[2])): tensor
            for path, tensor in _read(folder, "optim").items()
            if path[0] == "state"
        }
    optimizer: dict[str, Streamed] = {}
    for ours, theirs in _MOMENTS.items() if state else ():
        moments = {name: tensor for (name, kind), tensor in state.items() if kind == theirs}
        tables.check(moments, expected, f"{folder}: {theirs} of its optimizer")
        for name, array in tables.to_ours(places, shapes, moments).items():
            optimizer[f"adam/{ours}/{name}"] = array
    token_ids = {key: keys.take(f"model.{key}") for key in ("eos_token_id", "pad_token_id")}
    updates = _num_updates(state, folder)
    step = _step(folder, updates or 0)
    if state:
        optimizer["adam/count"] = source.scalar(updates or step)
        optimizer["learning_rate/count"] = source.scalar(step)
    return source.Source(
        model=model,
        data=data,
        step=step,
        params=tables.to_ours(places, shapes, tensors),
        folder=folder,
        optimizer=optimizer,
        origin={**source.types_of(places, tensors), "token_ids": token_ids},
    )


def _read(folder: Path, stem: str) -> dict[tuple[object, ...], Tensor]:
    """Returns the tensors of `stem.safetensors` or else `stem.pt`, by their paths in dicts."""
    path = folder / f"{stem}.safetensors"
    if path.exists():
        tensors = read_safetensors(path).items()
        decoded = ((*decode_key(key, str(path)), tensor) for key, tensor in tensors)
        return {keys: tensor for keys, is_pickle, tensor in decoded if not is_pickle}
    return dict(_flatten(_by_name(read_torch(folder / f"{stem}.pt"))))


def _by_name(state: Any) -> Any:
    """Returns an optimizer's state with the names of parameters in place of their numbers."""
    names = {
        number: name
        for group in state.get("param_groups", ())
        for number, name in zip(group["params"], group.get("param_names", ()), strict=False)
    }
    if "state" not in state:
        return state
    return {"state": {names.get(key, key): value for key, value in state["state"].items()}}


def _flatten(
    tree: object, path: tuple[object, ...] = ()
) -> Iterator[tuple[tuple[object, ...], Tensor]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flatten(value, (*path, key))
    elif hasattr(tree, "detach"):
        yield path, from_torch(tree)


def _clean(name: object, group_size: int) -> str:
    """Returns a parameter's name without the prefixes of FSDP and of groups of blocks."""
    name = str(name).replace("_fsdp_wrapped_module.", "").removeprefix("module.")
    return re.sub(
        r"\bblock_groups\.(\d+)\.(\d+)\b",
        lambda match: f"blocks.{int(match[1]) * group_size + int(match[2])}",
        name,
    )


def _num_updates(state: Mapping[tuple[str, str], Tensor], where: Path) -> int | None:
    """Returns the number of updates that the moments have seen, where it is stored."""
    found = {
        int(np.ravel(tensor.read(slice(None)))[0])
        for (_, kind), tensor in state.items()
        if kind == "step"
    }
    if len(found) > 1:
        raise InputError(f"{where}: parameters have seen different numbers of updates: {found}")
    return next(iter(found), None)


def _step(folder: Path, otherwise: int) -> int:
    """Returns the step of the folder's name or of its `train.pt`."""
    if match := re.match(r"step(\d+)", folder.resolve().name):
        return int(match[1])
    if (folder / "train.pt").exists():
        return int(read_torch(folder / "train.pt")["global_step"])
    return otherwise


_MARK = object()

_PUSHES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1"}
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}


def decode_key(key: str, where: str) -> tuple[tuple[str | int, ...], bool]:
    """Returns (path through nested dicts, true if the value is a pickle) of a key of safetensors.

    A key is base64 of a pickled tuple. InputError, which names the file by `where`, for others.
    """
    try:
        value = _unpickled(base64.urlsafe_b64decode(key))
        path, is_pickled = value
        if not isinstance(path, tuple) or not isinstance(is_pickled, bool):
            raise ValueError("it is not (path, is_pickled)")
    except (ValueError, TypeError, IndexError, KeyError, binascii.Error) as error:
        raise InputError(f"{where}: the key {key[:40]}... was not read: {error}") from error
    return path, is_pickled


def _unpickled(content: bytes) -> Any:
    """Returns the value of a pickle of nested tuples of strings, numbers and booleans.

    A pickle is a program, and running one from a file is running the file: nothing is run here, and
    no more is understood than what OLMo writes.
    """
    stack: list[object] = []
    memo: dict[object, object] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _PUSHES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            start = len(stack) - 1 - stack[::-1].index(_MARK)
            stack[start:] = [tuple(stack[start + 1 :])]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in _NOTHING:
            raise ValueError(f"it is a pickle with {name}, which is never run")
    (value,) = stack
    return value
