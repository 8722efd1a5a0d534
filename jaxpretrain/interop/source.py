"""A checkpoint that is not read yet: the form that all readers return and all writers take."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import diff, read_object, to_dict
from jaxpretrain.data.contract import Spec
from jaxpretrain.data.sources import DataChoice
from jaxpretrain.data.text.corpus import RawTokens
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.tokenizer import (
    end_id,
    read_tokenizer,
    special_tokens,
    vocabulary_size,
)
from jaxpretrain.interop import tables
from jaxpretrain.interop.tables import Shapes
from jaxpretrain.interop.tensors import Tensor
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.models.stack import is_stacked

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""The files that are copied beside the weights, where they exist."""

_OF_THE_TOKENIZER = TOKENIZER_FILES[:-1]
"""The files that describe the tokenizer; the last one of all describes how to generate."""


_HOW_IT_IS_RUN = ("attention", "scan_layers", "remat", "dtype", "residual_dtype")
"""The fields of a model that may differ, since they do not concern its weights."""


@dataclass(frozen=True)
class Source:
    """A model of ours whose arrays lie in files of any form."""

    model: Decoder | VitMae
    """The config of the model."""
    data: DataChoice
    """The config of data that it takes, which says what an example is."""
    step: int
    params: Mapping[str, Streamed]
    """The float32 parameters, by the names that a checkpoint has below `params/`."""
    folder: Path
    """The folder of `TOKENIZER_FILES`."""
    optimizer: Mapping[str, Streamed] = field(default_factory=dict)
    """The state of the optimizer, by the names below `optimizer/`; {}: there is none."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Facts for a later export, kept in the checkpoint: `dtype`, the type that the weights had, or
    the narrowest that holds them all exactly; `dtypes`, where they had several, the type of each
    layer of each parameter; `token_ids`, those of special tokens by their Hugging Face names."""
    constants: Mapping[str, Streamed] = field(default_factory=dict)
    """The tables that the model computes itself and that a file has with its own rounding, by the
    names of parameters. They are written again to the same form."""
    tokenizer: Path | None = None
    """A tokenizer.json, or a folder with one, that replaces the one in `folder`."""
    eos_id: int | None = None
    """The token that ends documents by the data or the user; files with another one are wrong."""
    weights: str | None = None
    """The kind of the weights, `plain` or `average`, of a run that also keeps their average."""

    def token_files(self) -> dict[str, Path]:
        """Returns the existing `TOKENIZER_FILES`, by name."""
        folders = dict.fromkeys(TOKENIZER_FILES, self.folder)
        if self.tokenizer is not None:
            folders |= dict.fromkeys(_OF_THE_TOKENIZER, self.tokenizer)
        files = {name: folder / name for name, folder in folders.items()}
        if self.tokenizer is not None and self.tokenizer.is_file():
            files["tokenizer.json"] = self.tokenizer
        return {name: path for name, path in files.items() if path.is_file()}

    def tokenizer_json(self) -> str | None:
        """Returns the text of the `tokenizer.json`; None where there is none."""
        path = self.token_files().get("tokenizer.json")
        return None if path is None else read_tokenizer(path)

    def end_ids(self) -> tuple[int, ...]:
        """Returns the tokens that end a text, from the data, the user or the model's files."""
        told = (self.origin.get("token_ids") or {}).get("eos_token_id")
        ends = told if self.eos_id is None else self.eos_id
        ends = ends if isinstance(ends, list) else [ends]
        return tuple(number for number in ends if isinstance(number, int))


def refuse_olmo_core(folder: Path) -> None:
    """Raises InputError for a checkpoint of OLMo-core, which has a `config.json` of its own."""
    # OLMo's older trainer has shards too, beside a config.yaml.
    is_core = (folder / "model_and_optim").is_dir() and not (folder / "config.yaml").exists()
    if (path := folder / "config.json").is_file():
        config = read_object(path)
        is_model = "architectures" in config or "model_type" in config
        is_core |= not is_model and isinstance(config.get("model"), dict)
    if is_core:
        raise InputError(
            f"{folder} is a sharded checkpoint or a run of OLMo-core, which is not read here; "
            "convert it to Hugging Face's form with OLMo-core first, then take --from=hf"
        )


def copy_token_files(source: Source, output: Path) -> None:
    """Copies `TOKENIZER_FILES` into a folder and corrects the end of documents in the copies."""
    for name, path in source.token_files().items():
        shutil.copyfile(path, output / name)
    if source.eos_id is None:
        return
    corrections: dict[str, Any] = {"generation_config.json": ("eos_token_id", source.eos_id)}
    tokens = special_tokens(source.tokenizer_json() or "{}")
    token = next((token for token, number in tokens.items() if number == source.eos_id), None)
    if token is not None:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            corrections[name] = ("eos_token", token)
    for name, (key, value) in corrections.items():
        if (output / name).exists():
            document = read_object(output / name)
            if document.get(key) != value:
                (output / name).write_text(json.dumps({**document, key: value}, indent=2) + "\n")


def with_tokens(source: Source, tokenizer: Path | None, eos_id: int | None) -> Source:
    """Returns the model with a user's tokenizer and end of documents; InputError if they clash."""
    model = source.model
    if not isinstance(model, Decoder):
        raise InputError(f"--tokenizer and --eos_id: a {type(model).__name__} reads no text")
    known = model.document_end if source.eos_id is None else source.eos_id
    if eos_id is not None and known not in (None, eos_id):
        raise InputError(
            f"--eos_id={eos_id}: the documents that this model was trained on end with {known}"
        )
    if eos_id is not None and not 0 <= eos_id < model.vocab_size:
        raise InputError(
            f"--eos_id={eos_id}: must be at least 0 and below the vocabulary of {model.vocab_size}"
        )
    known = known if eos_id is None else eos_id
    source = replace(source, tokenizer=tokenizer or source.tokenizer, eos_id=known)
    text = source.tokenizer_json()
    if tokenizer is not None and text is not None:
        if (size := vocabulary_size(text)) > model.vocab_size:
            raise InputError(
                f"--tokenizer={tokenizer} has {size} ids, the model's vocabulary only "
                f"{model.vocab_size}"
            )
        if not source.end_ids():
            source = replace(source, eos_id=end_id(text))
    if text is not None and (beyond := max(source.end_ids(), default=0)) >= vocabulary_size(text):
        raise InputError(
            f"the tokenizer has {vocabulary_size(text)} ids, so none is {beyond}, which ends "
            "documents; give the --tokenizer and the --eos_id of the data"
        )
    return source


def param_shapes(model: Decoder | VitMae, example: Spec) -> Shapes:
    """Returns the shapes of a model's parameters by name; InputError where sizes do not fit."""
    built = model.build(example, platform="cpu")
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    return {name: tuple(leaf.shape) for name, leaf in to_named(shapes).items()}


def text_data(seq_len: int, embedding_rows: int) -> TextData:
    """Returns data of that length; raw files hold the smallest type that has all ids, as OLMo's."""
    return TextData(seq_len=seq_len, raw=None if embedding_rows <= 2**16 else RawTokens("uint32"))


def num_token_ids(folder: Path, embedding_rows: int) -> int | None:
    """Returns the number of ids of a folder's tokenizer; InputError if above `embedding_rows`."""
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
    """Returns the types of a file's tensors in the form of `Source.origin`."""
    dtypes = {name: [tensors[p.theirs].dtype for p in pieces] for name, pieces in places.items()}
    found = {dtype for row in dtypes.values() for dtype in row}
    if len(found) == 1:
        return {"dtype": found.pop()}
    return {"dtype": str(tables.FLOAT32), "dtypes": dtypes}


def types_before(origin: dict[str, Any]) -> list[str]:
    """Returns the types that the weights had in their file."""
    rows = origin.get("dtypes", {}).values()
    return sorted({dtype for row in rows for dtype in row}) or [origin.get("dtype", "float32")]


def scalar(value: int) -> Streamed:
    """Returns a count in the form of Optax."""
    return Streamed((), np.dtype(np.int32), lambda: [np.array(value, np.int32)])


def merge(sources: Sequence[Source]) -> Source:
    """Returns the first source with the float64 mean of weights; InputError for other models."""
    first = sources[0]
    for other in sources[1:]:
        differing = [
            f"model.{path} is {a} there and {b} in {other.folder}"
            for path, a, b in diff(to_dict(first.model), to_dict(other.model))
            if path.split(".")[0] not in _HOW_IT_IS_RUN
        ]
        if differing:
            raise InputError(f"{first.folder} is of another model: {differing[0]}")
    kinds = {source.weights for source in sources if source.weights is not None}
    return replace(
        first,
        weights=" and ".join(sorted(kinds)) or None,
        step=max(source.step for source in sources),
        params={
            name: _mean(name, [source.params[name] for source in sources]) for name in first.params
        },
        optimizer={},
        origin={
            "token_ids": first.origin.get("token_ids"),
            "merged": [str(source.folder) for source in sources],
        },
    )


def _mean(name: str, arrays: Sequence[Streamed]) -> Streamed:
    def parts() -> Iterator[np.ndarray]:
        for layers in zip(*(tables.layers_of(name, array) for array in arrays), strict=True):
            total = np.zeros(layers[0].shape, np.float64)
            for layer in layers:
                total += layer
            mean = (total / len(layers)).astype(np.float32)
            yield mean[None] if is_stacked(name) else mean

    return replace(arrays[0], parts=parts)
