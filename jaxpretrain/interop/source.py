"""A checkpoint that is not yet read: what every reader here gives and every writer takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.data.text import TextData
from jaxpretrain.data.tokenizer import read_tokenizer, vocabulary_size
from jaxpretrain.interop import tables
from jaxpretrain.interop.tables import Shapes
from jaxpretrain.interop.tensors import Tensor
from jaxpretrain.parallel.checkpoint import Streamed, to_named

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""What goes along with the weights as it is, where it is there."""


@dataclass(frozen=True)
class Source:
    """A model of ours whose arrays lie in files, in whatever form."""

    model: Any
    """Its config, such as `Decoder`."""
    data: Any
    """The config of data that it takes, such as `TextData`: what an example is."""
    step: int
    params: Mapping[str, Streamed]
    """Float32, by the names that a checkpoint has below `params/`."""
    folder: Path
    """Where `TOKENIZER_FILES` lie, if any."""
    optimizer: Mapping[str, Streamed] = field(default_factory=dict)
    """By the names below `optimizer/`; {}: there is none."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What a later export wants to know, kept in the checkpoint: `dtype`, the type that the weights
    had, or the narrowest that holds them all exactly; `dtypes`, where they had several, the type of
    each layer of each parameter; `token_ids`, those of special tokens by their Hugging Face
    names."""
    constants: Mapping[str, Streamed] = field(default_factory=dict)
    """Tables that the model computes itself and that a file had with its own rounding, by the names
    of parameters. The same form is written with them."""


def param_shapes(model: Any, data: Any) -> Shapes:
    """The parameters of a model, given by its config, on examples of some data.

    Raises:
      InputError: the sizes do not fit together.
    """
    validate(model)
    built = model.build(data.example_spec(), platform="cpu")
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    return {name: tuple(leaf.shape) for name, leaf in to_named(shapes).items()}


def text_data(seq_len: int, embedding_rows: int) -> TextData:
    """Sequences of that length; raw files hold the smallest type that has all ids, as OLMo's."""
    return TextData(seq_len=seq_len, dtype="uint16" if embedding_rows <= 2**16 else "uint32")


def num_token_ids(folder: Path, embedding_rows: int) -> int | None:
    """Ids that the tokenizer of a folder has; None where there is none.

    Raises:
      InputError: it has more ids than the embedding has rows.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    size = vocabulary_size(read_tokenizer(path))
    if size > embedding_rows:
        raise InputError(f"{path} has {size} ids, but the embedding only {embedding_rows} rows")
    return size


def types_of(
    places: Mapping[str, list[tables.Piece]], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The types of a file's tensors, as `Source.origin` has them."""
    dtypes = {name: [tensors[p.theirs].dtype for p in pieces] for name, pieces in places.items()}
    found = {dtype for row in dtypes.values() for dtype in row}
    if len(found) == 1:
        return {"dtype": found.pop()}
    return {"dtype": str(tables.FLOAT32), "dtypes": dtypes}


def types_before(origin: Mapping[str, Any]) -> list[str]:
    """The types that weights had in the file that they come from."""
    rows = origin.get("dtypes", {}).values()
    return sorted({dtype for row in rows for dtype in row}) or [origin.get("dtype", "float32")]


def scalar(value: int) -> Streamed:
    """A count, as Optax keeps it."""
    return Streamed((), np.dtype(np.int32), lambda: [np.array(value, np.int32)])
