"""Hugging Face folders (`config.json` and safetensors) in and out, without torch."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import read_object
from jaxpretrain.data.token_files.special import begin_ids
from jaxpretrain.data.token_files.tokenizer import end_id, special_tokens
from jaxpretrain.interop import hf_config, tables
from jaxpretrain.interop import source as sources
from jaxpretrain.interop.hf_rope import JsonObject
from jaxpretrain.interop.source import Source
from jaxpretrain.interop.tensors import Tensor, read_safetensors_folder, write_safetensors_folder
from jaxpretrain.models.olmo.decoder import Decoder

_COMPUTED = ("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
"""The tensors that old versions of transformers wrote although the config implies them."""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def is_hugging_face(folder: Path) -> bool:
    """Returns true for a folder that looks like a model of Hugging Face."""
    return (folder / "config.json").is_file()


def open_hugging_face(folder: Path) -> Source:
    """Opens the model of a folder; only names and shapes of its tensors are read now.

    Raises InputError where the config is of another architecture, a file is missing or damaged, a
    tensor is missing, superfluous or of another shape, or the tokenizer does not fit.
    """
    sources.refuse_olmo_core(folder)
    where = folder / "config.json"
    config = read_object(where)
    architecture, model, seq_len = hf_config.read_config(config, str(where))
    num_ids = sources.num_token_ids(folder, model.embedding_rows)
    model = replace(model, vocab_size=num_ids or model.embedding_rows)
    if seq_len < 2:
        raise InputError(f"{where}: max_position_embeddings={seq_len}: must be 2 or more")
    data = sources.text_data(seq_len, model.embedding_rows)
    try:
        shapes = sources.param_shapes(model, data.example_spec())
    except InputError as error:
        raise InputError(f"{where}: {hf_config.in_their_words(str(error))}") from error
    places = tables.place(architecture.table, shapes)
    tensors = read_safetensors_folder(folder)
    if model.tied_head and _HEAD in tensors:
        tensors = _without_copy(tensors, folder)
    expected = tables.their_shapes(places, shapes)
    tables.check(tensors, expected, str(folder), _COMPUTED)
    tensors = {name: tensors[name] for name in expected}
    return Source(
        model=model,
        data=data,
        step=0,
        params=tables.to_ours(places, shapes, tensors),
        folder=folder,
        origin=sources.types_of(places, tensors)
        | {"token_ids": hf_config.read_token_ids(config, architecture, where)},
    )


def write_hugging_face(source: Source, output: Path, dtype: str | None = None) -> None:
    """Writes a model into the new folder `output`, by default in the old types of its weights.

    Raises InputError where no class of transformers is this model.
    """
    if not isinstance(source.model, Decoder):
        raise InputError(f"--to=hf: a {type(source.model).__name__} is no model of transformers")
    architecture, config = hf_config.write_config(source.model, _seq_len(source))
    dtypes = {} if dtype else source.origin.get("dtypes", {})
    dtype = dtype or source.origin.get("dtype", "float32")
    token_ids = special_ids(source)
    output.mkdir()
    sources.copy_token_files(source, output)
    _write_missing(output, _tokenizer_documents(source, token_ids))
    generation = {key: value for key, value in token_ids.items() if value is not None}
    config |= dict.fromkeys(hf_config.TOKEN_IDS) | token_ids
    config |= {"dtype": dtype, "torch_dtype": dtype}
    _write_missing(output, {"config.json": config})
    if generation:
        _write_missing(output, {"generation_config.json": generation})

    shapes = {name: array.shape for name, array in source.params.items()}
    places = tables.place(architecture.table, shapes)
    number = np.dtype(jnp.dtype(dtype))
    numbers = {
        piece.theirs: np.dtype(jnp.dtype(kept))
        for name, row in dtypes.items()
        for piece, kept in zip(places[name], row, strict=True)
    }
    specs = {
        name: (shape, numbers.get(name, number))
        for name, shape in tables.their_shapes(places, shapes).items()
    }
    tensors = tables.to_theirs(places, source.params, number, numbers)
    write_safetensors_folder(output, specs, tensors)


def _without_copy(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a tied model without the second copy of the embedding."""
    everything = slice(None)
    if not np.array_equal(tensors[_HEAD].read(everything), tensors[_EMBEDDING].read(everything)):
        raise InputError(
            f"{folder}: {_HEAD} is not {_EMBEDDING}, but config.json has tie_word_embeddings"
        )
    return {name: tensor for name, tensor in tensors.items() if name != _HEAD}


def special_ids(source: Source) -> JsonObject:
    """Returns the known ids of special tokens by their Hugging Face names."""
    if told := source.origin.get("token_ids"):
        return told if source.eos_id is None else {**told, "eos_token_id": source.eos_id}
    model, text, number = source.model, source.tokenizer_json(), source.eos_id
    if number is None and isinstance(model, Decoder):
        number = model.document_end
    if number is None and text is not None:
        number = end_id(text)
    path = source.token_files().get("tokenizer.json")
    first = begin_ids(text, path) if text is not None and path is not None else []
    return {"eos_token_id": number} | ({"bos_token_id": first[0]} if len(first) == 1 else {})


def _tokenizer_documents(source: Source, token_ids: JsonObject) -> JsonObject:
    """Returns the files that transformers wants beside a `tokenizer.json`."""
    text = source.tokenizer_json()
    if text is None:
        return {}
    by_id = {number: token for token, number in special_tokens(text).items()}
    special = {
        key.removesuffix("_id"): by_id[number]
        for key, number in token_ids.items()
        if isinstance(number, int) and number in by_id  # some have a list of them
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {
        "tokenizer_config.json": {**settings, "model_max_length": _seq_len(source), **special},
        "special_tokens_map.json": special,
    }


def _seq_len(source: Source) -> int:
    ((seq_len,), _) = source.data.example_spec()["tokens"]
    return seq_len


def _write_missing(output: Path, documents: JsonObject) -> None:
    for name, document in documents.items():
        if not (output / name).exists():
            (output / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
