"""Hugging Face's `config.json` <-> `Decoder`, and the names of the weights of each class.

Read as both transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) write it;
written so that both read it.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.interop.tables import Row, Table
from jaxpretrain.models.decoder import Decoder
from jaxpretrain.models.rotary import Yarn

_LAYER = "model.layers.{}."
_COMMON: Table = (
    Row("model.embed_tokens.weight", ("embed/embedding",)),
    Row(_LAYER + "self_attn.q_proj.weight", ("blocks/{}/query/kernel",)),
    Row(_LAYER + "self_attn.k_proj.weight", ("blocks/{}/key/kernel",)),
    Row(_LAYER + "self_attn.v_proj.weight", ("blocks/{}/value/kernel",)),
    Row(_LAYER + "self_attn.o_proj.weight", ("blocks/{}/output/kernel",)),
    Row(_LAYER + "self_attn.q_norm.weight", ("blocks/{}/query_norm/scale",)),
    Row(_LAYER + "self_attn.k_norm.weight", ("blocks/{}/key_norm/scale",)),
    Row(_LAYER + "mlp.gate_proj.weight", ("blocks/{}/gate/kernel",)),
    Row(_LAYER + "mlp.up_proj.weight", ("blocks/{}/up/kernel",)),
    Row(_LAYER + "mlp.down_proj.weight", ("blocks/{}/down/kernel",)),
    Row("model.norm.weight", ("final_norm/scale",)),
    Row("lm_head.weight", ("head/kernel",)),
)
_NORMS_BEFORE: Table = (
    Row(_LAYER + "input_layernorm.weight", ("blocks/{}/attention_norm/scale",)),
    Row(_LAYER + "post_attention_layernorm.weight", ("blocks/{}/mlp_norm/scale",)),
)
_NORMS_AFTER: Table = (
    Row(_LAYER + "post_attention_layernorm.weight", ("blocks/{}/attention_norm/scale",)),
    Row(_LAYER + "post_feedforward_layernorm.weight", ("blocks/{}/mlp_norm/scale",)),
)


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, as far as it is a decoder of ours."""

    model_type: str
    table: Table
    fixed: dict[str, Any]
    """Fields of `Decoder` that the class leaves no choice in."""
    implied: dict[str, Any]
    """Fields that it implies and that do not matter to its weights."""
    theta: float = 10000.0
    """Its rope_theta where a config names none."""


_NORM_BEFORE = {"norm_position": "before", "qk_norm": False}
_NORM_AFTER = {"norm_position": "after", "qk_norm": True, "clip_qkv": None}
_NO_WINDOWS = {"windows": (None,)}
_LAYERNORM = {"norm": "layernorm", "norm_epsilon": 1e-5}
_RMSNORM = {"norm": "rmsnorm"}
_LIKE_OLMO_2 = {"init": "normal", "norm_rounding": "after_scale"}

ARCHITECTURES: dict[str, Architecture] = {
    "OlmoForCausalLM": Architecture(
        "olmo", _COMMON, _LAYERNORM | _NORM_BEFORE | _NO_WINDOWS, implied={}
    ),
    "Olmo2ForCausalLM": Architecture(
        "olmo2", _COMMON + _NORMS_AFTER, _RMSNORM | _NORM_AFTER | _NO_WINDOWS, _LIKE_OLMO_2
    ),
    "Olmo3ForCausalLM": Architecture(
        "olmo3", _COMMON + _NORMS_AFTER, _RMSNORM | _NORM_AFTER, _LIKE_OLMO_2, theta=500000.0
    ),
    # For OLMo's ladder: no OLMo class has RMSNorm in front.
    "LlamaForCausalLM": Architecture(
        "llama",
        _COMMON + _NORMS_BEFORE,
        _RMSNORM | _NORM_BEFORE | _NO_WINDOWS | {"clip_qkv": None},
        _LIKE_OLMO_2,
    ),
}

_SIZES = {
    "vocab_size": "embedding_rows",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
"""Keys of config.json, to fields of `Decoder`."""

_OPTIONAL = {"rms_norm_eps": ("norm_epsilon", 1e-5), "clip_qkv": ("clip_qkv", None)}
"""Keys that only some classes have, to fields and to what they are where a config is silent."""

_ONLY = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
"""Keys with the value that they must have, and have where a config is silent."""


def read_config(config: dict[str, Any], where: str) -> tuple[Architecture, Decoder, int]:
    """(architecture, decoder, tokens of its context); its vocabulary is all rows.

    Raises:
      InputError: another architecture, or one of its features that a `Decoder` has not.
    """
    name = next(iter(config.get("architectures") or ["not named"]))
    if name not in ARCHITECTURES:
        raise InputError(
            f"{where}: the architecture is {name}; these can be read: {', '.join(ARCHITECTURES)}."
            f"{nearest(name, ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[name]
    config = {"max_position_embeddings": 2048, **config}
    for key in (*_SIZES, "max_position_embeddings"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise InputError(f"{where}: {key} is {config.get(key)}, not a number of things")
    sizes = {ours: config[key] for key, ours in _SIZES.items()}
    head_dim = sizes["d_model"] // sizes["num_heads"]
    only = {**_ONLY, "head_dim": config.get("head_dim") and head_dim}
    for key, value in only.items():
        if config.get(key, value) != value:
            raise InputError(f"{where}: {key}={config[key]} is not supported, only {value}")
    kv_heads = config.get("num_key_value_heads")
    rope = _read_rope(config, where)
    fields = {
        **sizes,
        "vocab_size": sizes["embedding_rows"],
        "num_kv_heads": None if kv_heads == sizes["num_heads"] else kv_heads,
        **{ours: config.get(key, default) for key, (ours, default) in _OPTIONAL.items()},
        "rope_theta": rope.get("rope_theta", architecture.theta),
        "yarn": _read_yarn(rope, where),
        "tied_head": config.get("tie_word_embeddings", False),
        **architecture.implied,
        **architecture.fixed,
    }
    if "windows" not in fields:
        fields["windows"] = _read_windows(config, sizes["num_layers"], where)
    return architecture, Decoder(**fields), config["max_position_embeddings"]


def write_config(model: Decoder, seq_len: int) -> tuple[Architecture, dict[str, Any]]:
    """(architecture, config.json without the ids of special tokens).

    Raises:
      InputError: no class of transformers computes what the model does; the field is named.
    """
    name, architecture = _choose(model)
    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    stretched = rope | _write_yarn(model.yarn)
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": architecture.model_type,
        **{key: getattr(model, ours) for key, ours in _SIZES.items()},
        **{
            key: getattr(model, ours)
            for key, (ours, _) in _OPTIONAL.items()
            if ours not in architecture.fixed
        },
        "num_key_value_heads": model.num_kv_heads or model.num_heads,
        "max_position_embeddings": seq_len,
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": model.rope_theta,
        "rope_scaling": _write_yarn(model.yarn) or None,
        "rope_parameters": stretched,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_head,
    }
    if "windows" not in architecture.fixed:
        sizes = {window for window in model.windows if window is not None}
        if len(sizes) > 1:
            raise InputError(
                f"{name} of transformers has windows of one size, not model.windows={model.windows}"
            )
        kinds = ["full_attention" if w is None else "sliding_attention" for w in model.windows]
        config |= {
            "sliding_window": sizes.pop() if sizes else seq_len,
            "layer_types": kinds * (model.num_layers // len(kinds)),
            "rope_parameters": {"full_attention": stretched, "sliding_attention": rope},
        }
    return architecture, config


def _choose(model: Decoder) -> tuple[str, Architecture]:
    """The first class that can be the model."""
    differing = {
        name: [field for field, value in a.fixed.items() if getattr(model, field) != value]
        for name, a in ARCHITECTURES.items()
    }
    name = min(differing, key=lambda name: len(differing[name]))
    if differing[name]:
        fixed = ARCHITECTURES[name].fixed
        shown = "; ".join(
            f"model.{field}={getattr(model, field)}, which is {fixed[field]} in {name}"
            for field in differing[name]
        )
        raise InputError(f"no class of transformers is this model: {shown}")
    return name, ARCHITECTURES[name]


def _read_rope(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The rotary positions of the layers with full attention, in the keys of transformers 5."""
    new = config.get("rope_parameters") or {}
    full = new.get("full_attention", new) or {}
    scaling = config.get("rope_scaling") or {}
    old = {"rope_theta": config["rope_theta"]} if "rope_theta" in config else {}
    rope = {**old, **scaling, **full}
    sliding = new.get("sliding_attention") or {}
    if sliding.get("rope_theta", rope.get("rope_theta")) != rope.get("rope_theta"):
        raise InputError(f"{where}: sliding layers have another rope_theta, which is not supported")
    return rope


def _read_yarn(rope: dict[str, Any], where: str) -> Yarn | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise InputError(f"{where}: rope_type={kind} is not supported, only default and yarn")
    try:
        yarn = Yarn(
            factor=float(rope["factor"]),
            original_length=int(rope["original_max_position_embeddings"]),
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its YaRN parameters are not complete: {error}") from error
    scale = rope.get("attention_factor") or yarn.magnitude
    only = {"mscale": None, "mscale_all_dim": None, "truncate": True, "partial_rotary_factor": 1.0}
    other = [key for key, value in only.items() if rope.get(key, value) != value]
    if other or not math.isclose(scale, yarn.magnitude, rel_tol=1e-6):
        key = other[0] if other else "attention_factor"
        raise InputError(f"{where}: YaRN with {key}={rope[key]} is not supported")
    return yarn


def _write_yarn(yarn: Yarn | None) -> dict[str, Any]:
    if yarn is None:
        return {}
    return {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_length,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "attention_factor": yarn.magnitude,
    }


def _read_windows(config: dict[str, Any], num_layers: int, where: str) -> tuple[int | None, ...]:
    """The shortest pattern that the windows of the layers repeat."""
    full, sliding = "full_attention", "sliding_attention"
    kinds = config.get("layer_types") or [
        full if layer % 4 == 3 else sliding for layer in range(num_layers)
    ]
    if len(kinds) != num_layers or not set(kinds) <= {full, sliding}:
        raise InputError(f"{where}: layer_types must be {num_layers} times {full} or {sliding}")
    size = config.get("sliding_window", 4096)
    windows = tuple(None if kind == full else size for kind in kinds)
    lengths = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
    return next(windows[:n] for n in lengths if windows[:n] * (num_layers // n) == windows)
