"""Hugging Face's `config.json` <-> `Decoder`, and the names of the weights of each class.

Read as both transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) write it;
written so that both read it.
"""

import re
from dataclasses import dataclass, is_dataclass
from fnmatch import fnmatchcase
from functools import reduce
from pathlib import Path

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.schema import snake_case
from jaxpretrain.config.serialize import checked
from jaxpretrain.interop import hf_rope
from jaxpretrain.interop.hf_rope import FULL, SLIDING, JsonObject
from jaxpretrain.interop.tables import Table, TensorRow
from jaxpretrain.models.layers import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.config import Mitchell, Normal
from jaxpretrain.models.olmo.decoder import Decoder

_LAYER = "model.layers.{}."
_COMMON: Table = (
    TensorRow("model.embed_tokens.weight", ("embed/embedding",)),
    TensorRow(_LAYER + "self_attn.q_proj.weight", ("blocks/{}/query/kernel",)),
    TensorRow(_LAYER + "self_attn.k_proj.weight", ("blocks/{}/key/kernel",)),
    TensorRow(_LAYER + "self_attn.v_proj.weight", ("blocks/{}/value/kernel",)),
    TensorRow(_LAYER + "self_attn.o_proj.weight", ("blocks/{}/output/kernel",)),
    TensorRow(_LAYER + "self_attn.q_norm.weight", ("blocks/{}/query_norm/scale",)),
    TensorRow(_LAYER + "self_attn.k_norm.weight", ("blocks/{}/key_norm/scale",)),
    TensorRow(_LAYER + "mlp.gate_proj.weight", ("blocks/{}/gate/kernel",)),
    TensorRow(_LAYER + "mlp.up_proj.weight", ("blocks/{}/up/kernel",)),
    TensorRow(_LAYER + "mlp.down_proj.weight", ("blocks/{}/down/kernel",)),
    TensorRow("model.norm.weight", ("final_norm/scale",)),
    TensorRow("lm_head.weight", ("head/kernel",)),
)
_NORMS_BEFORE: Table = (
    TensorRow(_LAYER + "input_layernorm.weight", ("blocks/{}/attention_norm/scale",)),
    TensorRow(_LAYER + "post_attention_layernorm.weight", ("blocks/{}/mlp_norm/scale",)),
)
_NORMS_AFTER: Table = (
    TensorRow(_LAYER + "post_attention_layernorm.weight", ("blocks/{}/attention_norm/scale",)),
    TensorRow(_LAYER + "post_feedforward_layernorm.weight", ("blocks/{}/mlp_norm/scale",)),
)


@dataclass(frozen=True)
class Architecture:
    """A class of transformers that computes what a `Decoder` can compute."""

    model_type: str
    table: Table
    fixed: JsonObject
    """The fields of a `Decoder`, by path, that the class leaves no choice in."""
    defaults: JsonObject
    """The keys of config.json that are read, beside `_SIZES`, with the defaults of the class; no
    other key matters to the class."""


@dataclass(frozen=True)
class _Keys:
    """The types of the keys that are read, of all classes."""

    architectures: tuple[str, ...] | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    rms_norm_eps: float = 0.0
    clip_qkv: float | None = None
    hidden_act: str | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    rope_scaling: hf_rope.RopeKeys | None = None
    rope_parameters: hf_rope.RopeOfKinds | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    bos_token_id: int | tuple[int, ...] | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | tuple[int, ...] | None = None


_NORM_BEFORE = {"norm_position": "before", "qk_norm": False}
_NORM_AFTER = {"norm_position": "after", "qk_norm": True, "clip_qkv": None}
_NO_WINDOWS = {"windows": (None,)}
_LAYER_NORM = {"norm": "layer_norm", "norm.epsilon": 1e-5}
_RMS_NORM = {"norm": "rms_norm"}

_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 50279,
    "pad_token_id": 1,
}
_DEFAULTS_OLMO_2 = _DEFAULTS | {"rms_norm_eps": 1e-5}
_DEFAULTS_OLMO_3 = {"rope_theta": 500000.0, "sliding_window": 4096, "layer_types": None}
_DEFAULTS_LLAMA = {
    "rms_norm_eps": 1e-6,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

ARCHITECTURES: dict[str, Architecture] = {
    "OlmoForCausalLM": Architecture(
        "olmo",
        _COMMON,
        fixed=_LAYER_NORM | _NORM_BEFORE | _NO_WINDOWS,
        defaults=_DEFAULTS | {"clip_qkv": None},
    ),
    "Olmo2ForCausalLM": Architecture(
        "olmo2",
        _COMMON + _NORMS_AFTER,
        fixed=_RMS_NORM | _NORM_AFTER | _NO_WINDOWS,
        defaults=_DEFAULTS_OLMO_2,
    ),
    "Olmo3ForCausalLM": Architecture(
        "olmo3",
        _COMMON + _NORMS_AFTER,
        fixed=_RMS_NORM | _NORM_AFTER,
        defaults=_DEFAULTS_OLMO_2 | _DEFAULTS_OLMO_3,
    ),
    # For OLMo's ladder: no OLMo class has RMSNorm in front.
    "LlamaForCausalLM": Architecture(
        "llama",
        _COMMON + _NORMS_BEFORE,
        fixed=_RMS_NORM | _NORM_BEFORE | _NO_WINDOWS | {"clip_qkv": None},
        defaults=_DEFAULTS | _DEFAULTS_LLAMA,
    ),
}

_SIZES = {
    "vocab_size": "embedding_rows",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
"""The fields of a `Decoder`, by the keys of config.json."""

_SETTINGS = {"rms_norm_eps": "norm.epsilon", "clip_qkv": "clip_qkv"}
"""The fields of keys that only some classes have."""

_COUNTS = (*_SIZES, "max_position_embeddings", "num_key_value_heads", "head_dim", "sliding_window")
_NULLABLE = ("num_key_value_heads", "head_dim", "sliding_window")
"""The counts that may be null."""

_ONLY = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
"""The keys that must have one value, the only one that a `Decoder` can have."""

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""The keys of config.json with the ids of special tokens."""

_INERT = (
    # What wrote the file, and how a program is to hold or run the model.
    "_* transformers_version architectures model_type name_or_path dtype torch_dtype use_cache "
    "return_dict output_attentions output_hidden_states pretraining_tp attn_implementation "
    "use_bfloat16 torchscript gradient_checkpointing chunk_size_feed_forward max_sequence_length "
    "tokenizer_class is_encoder_decoder "
    # What only training asks for, and we take from the config of the run.
    "initializer_range attention_dropout "
    # Other tasks than the next token.
    "id2label label2id num_labels problem_type finetuning_task task_specific_params unk_token_id "
    "sep_token_id decoder_start_token_id prefix "
    # How text was sampled, as old versions wrote it here.
    "do_sample temperature top_k top_p typical_p num_beams num_beam_groups max_length min_length "
    "length_penalty repetition_penalty diversity_penalty encoder_no_repeat_ngram_size "
    "no_repeat_ngram_size num_return_sequences bad_words_ids begin_suppress_tokens suppress_tokens "
    "early_stopping exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id "
    "output_scores remove_invalid_values return_dict_in_generate"
)
"""The patterns of keys that do not change what a model computes from tokens."""


def read_config(config: JsonObject, where: str) -> tuple[Architecture, Decoder, int]:
    """Returns (architecture, decoder, tokens of its context); all rows are its vocabulary.

    Raises InputError where the architecture is another one, or has a feature that a `Decoder` does
    not have.
    """
    checked(_Keys, config, where)
    architecture = _read_architecture(config, where)
    _check_keys(config, architecture, where)
    defaults = architecture.defaults
    values = defaults | config
    _check_values(values, where)
    sizes = {ours: values[key] for key, ours in _SIZES.items()}
    head_dim = sizes["d_model"] // sizes["num_heads"]
    if values["head_dim"] not in (None, head_dim):
        raise InputError(
            f"{where}: head_dim={values['head_dim']} is not supported, only {head_dim}"
        )
    kinds = _read_kinds(values, where) if "layer_types" in values else None
    kv_heads, clip_qkv = values["num_key_value_heads"], values.get("clip_qkv")
    # Weights do not tell how they began and where norms rounded: what the class was trained with.
    is_olmo_1 = architecture.fixed["norm"] == "layer_norm"
    decoder = Decoder(
        **sizes,
        vocab_size=sizes["embedding_rows"],
        num_kv_heads=None if kv_heads == sizes["num_heads"] else kv_heads,
        norm=LayerNorm() if is_olmo_1 else RMSNorm(float(values["rms_norm_eps"]), "after_scale"),
        norm_position=architecture.fixed["norm_position"],
        qk_norm=architecture.fixed["qk_norm"],
        clip_qkv=None if clip_qkv is None else float(clip_qkv),
        init=Mitchell() if is_olmo_1 else Normal(),
        rope=hf_rope.read_rope(config, defaults, kinds and set(kinds), head_dim, where),
        tied_head=values["tie_word_embeddings"],
        windows=_windows(kinds, values["sliding_window"], where) if kinds else (None,),
    )
    return architecture, decoder, values["max_position_embeddings"]


def in_their_words(message: str) -> str:
    """Returns an error about a field of a `Decoder` with the key of config.json in its place."""
    for key, ours in (_SIZES | _SETTINGS).items():
        message = re.sub(rf"(--config|\bmodel)\.{re.escape(ours)}\b", key, message)
    return message


def read_token_ids(
    config: JsonObject, architecture: Architecture, where: Path | str = "config.json"
) -> JsonObject:
    """Returns the ids of special tokens in the vocabulary; InputError for an end beyond it."""
    ends, size = config.get("eos_token_id"), config["vocab_size"]
    for end in ends if isinstance(ends, list) else [ends]:
        if isinstance(end, int) and not 0 <= end < size:
            raise InputError(f"{where}: eos_token_id={end} is no id of a vocabulary of {size}")
    defaults = {key: architecture.defaults[key] for key in TOKEN_IDS}
    known = {k: v for k, v in defaults.items() if v is not None and v < size}
    return {key: config.get(key, known.get(key)) for key in TOKEN_IDS}


def write_config(model: Decoder, seq_len: int) -> tuple[Architecture, JsonObject]:
    """Returns (architecture, config.json without token ids); InputError where no class is it."""
    name, architecture = _choose(model)
    rope = {"rope_type": "default", "rope_theta": model.rope.theta}
    yarn = hf_rope.write_yarn(model.rope)
    config: JsonObject = {
        "architectures": [name],
        "model_type": architecture.model_type,
        **{key: getattr(model, ours) for key, ours in _SIZES.items()},
        **{k: _at(model, ours) for k, ours in _SETTINGS.items() if k in architecture.defaults},
        "num_key_value_heads": model.num_kv_heads or model.num_heads,
        "max_position_embeddings": seq_len,
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": model.rope.theta,
        "rope_scaling": yarn or None,
        "rope_parameters": rope | yarn,
        "initializer_range": getattr(model.init, "std", Normal.std),
        "tie_word_embeddings": model.tied_head,
    }
    if "windows" not in architecture.fixed:
        sizes = {window for window in model.windows if window is not None}
        if len(sizes) > 1:
            raise InputError(
                f"{name} of transformers has windows of one size, not model.windows={model.windows}"
            )
        kinds = [FULL if window is None else SLIDING for window in model.windows]
        config |= {
            "sliding_window": sizes.pop() if sizes else seq_len,
            "layer_types": kinds * (model.num_layers // len(kinds)),
            "rope_parameters": {FULL: rope | yarn, SLIDING: rope},
        }
    return architecture, config


def _choose(model: Decoder) -> tuple[str, Architecture]:
    """Returns the first class that can be the model."""
    differing = {
        name: [field for field, value in a.fixed.items() if _at(model, field) != value]
        for name, a in ARCHITECTURES.items()
    }
    name = min(differing, key=lambda name: len(differing[name]))
    if differing[name]:
        fixed = ARCHITECTURES[name].fixed
        shown = "; ".join(
            f"model.{field}={_at(model, field)}, which is {fixed[field]} in {name}"
            for field in differing[name]
        )
        raise InputError(f"no class of transformers is this model: {shown}")
    return name, ARCHITECTURES[name]


def _at(model: Decoder, path: str) -> object:
    """Returns the value of a field, given by its path; the name of a choice."""
    value = reduce(getattr, path.split("."), model)
    return snake_case(type(value)) if is_dataclass(value) else value


def _read_architecture(config: JsonObject, where: str) -> Architecture:
    name = next(iter(config.get("architectures") or ["not named"]))
    if name not in ARCHITECTURES:
        raise InputError(
            f"{where}: the architecture is {name}; these can be read: {', '.join(ARCHITECTURES)}."
            f"{nearest(name, ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[name]
    model_type = config.get("model_type", architecture.model_type)
    if model_type != architecture.model_type:
        raise InputError(
            f"{where}: model_type={model_type} contradicts the architecture {name}, whose "
            f"model_type is {architecture.model_type}"
        )
    return architecture


def _check_keys(config: JsonObject, architecture: Architecture, where: str) -> None:
    """Refuses keys that may change the model and are not understood."""
    known, inert = [*_SIZES, *architecture.defaults], _INERT.split()
    for key, value in config.items():
        is_silent = value is None or value in ("", [], {})
        is_same = key in _ONLY and value == _ONLY[key]
        if key in known or is_silent or is_same or any(fnmatchcase(key, p) for p in inert):
            continue
        raise InputError(
            f"{where}: {key}={str(value)[:60]} is not understood and may change the model; remove "
            f"the key if it has no effect in {architecture.model_type}.{nearest(key, known)}"
        )


def _check_values(values: JsonObject, where: str) -> None:
    for key in _COUNTS:
        value = values.get(key)
        if not (value is None and key in _NULLABLE) and (value is None or value < 1):
            raise InputError(f"{where}: {key} is {value}, not a number of things")
    for key, only in _ONLY.items():
        if values.get(key, only) != only:
            raise InputError(f"{where}: {key}={values[key]} is not supported, only {only}")


def _read_kinds(values: JsonObject, where: str) -> list[str]:
    """Returns the kind of each layer."""
    num_layers, kinds = values["num_hidden_layers"], values["layer_types"]
    if kinds is None:
        return [FULL if layer % 4 == 3 else SLIDING for layer in range(num_layers)]
    if len(kinds) != num_layers or not {*kinds} <= {FULL, SLIDING}:
        raise InputError(f"{where}: layer_types must be {num_layers} times {FULL} or {SLIDING}")
    return kinds


def _windows(kinds: list[str], size: int | None, where: str) -> tuple[int | None, ...]:
    """Returns the shortest pattern that the windows of the layers repeat."""
    if size is None and SLIDING in kinds:
        raise InputError(f"{where}: sliding_window is null, but layer_types has {SLIDING}")
    windows = tuple(None if kind == FULL else size for kind in kinds)
    lengths = [n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0]
    return next(windows[:n] for n in lengths if windows[:n] * (len(kinds) // n) == windows)
