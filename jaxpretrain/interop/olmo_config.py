"""`config.yaml` of OLMo's own trainer -> `Decoder`.

Source: allenai/OLMo `olmo/config.py`, ModelConfig.
"""

from pathlib import Path
from typing import Any

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.decoder import Decoder

_DEFAULTS: dict[str, Any] = {
    "n_kv_heads": None,
    "clip_qkv": None,
    "mlp_ratio": 4,
    "mlp_hidden_size": None,
    "multi_query_attention": None,
    "attention_layer_norm": False,
    "norm_after": False,
    "layer_norm_type": "default",
    "layer_norm_with_affine": True,
    "attention_layer_norm_with_affine": True,
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000,
    "max_sequence_length": 1024,
    "embedding_size": 50304,
    "weight_tying": True,
    "block_group_size": 1,
    "init_fn": "normal",
    "init_std": 0.02,
    "init_cutoff_factor": None,
    "activation_type": "swiglu",
    "block_type": "sequential",
    "alibi": False,
    "rope": False,
    "include_bias": True,
    "bias_for_layer_norm": None,
    "embedding_layer_norm": False,
    "scale_logits": False,
}
"""What OLMo's trainer takes where a config.yaml says nothing."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "activation_type": ("swiglu",),
    "block_type": ("sequential",),
    "alibi": (False,),
    "rope": (True,),
    "include_bias": (False,),
    "bias_for_layer_norm": (None, False),
    "embedding_layer_norm": (False,),
    "scale_logits": (False,),
}
"""Settings with the values that a `Decoder` can have."""


def read_settings(path: Path) -> dict[str, Any]:
    """The model's settings, those that are not there with OLMo's defaults.

    Raises:
      InputError: it is no such config, or of a model that a `Decoder` cannot be.
    """
    import yaml

    try:
        settings = {**_DEFAULTS, **yaml.safe_load(path.read_text())["model"]}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not the config of an OLMo model: {reason}") from error
    for key in ("d_model", "n_heads", "n_layers", "vocab_size"):
        if not isinstance(settings.get(key), int) or settings[key] < 1:
            raise InputError(f"{path}: model.{key} is {settings.get(key)}, not a number of things")
    for key, values in _ONLY.items():
        if settings[key] not in values:
            raise InputError(f"{path}: model.{key}={settings[key]} is not supported")
    return settings


def make_decoder(settings: dict[str, Any], where: str) -> Decoder:
    """The model of such settings, with the loss and the rounding of OLMo's trainer.

    Raises:
      InputError: its norms are others than a `Decoder` has.
    """
    kind, has_scale = settings["layer_norm_type"], settings["layer_norm_with_affine"]
    qk_norm = settings["attention_layer_norm"]
    norms: dict[Any, Any] = {("default", False): "layernorm", ("rms", True): "rmsnorm"}
    norm = norms.get((kind, has_scale))
    qk_has_scale = settings["attention_layer_norm_with_affine"]
    if norm is None or (qk_norm and not (norm == "rmsnorm" and qk_has_scale)):
        raise InputError(
            f"{where}: norms of layer_norm_type={kind}, layer_norm_with_affine={has_scale}, "
            f"attention_layer_norm={qk_norm} are not supported"
        )
    hidden = settings["mlp_hidden_size"] or settings["mlp_ratio"] * settings["d_model"]
    kv_heads = 1 if settings["multi_query_attention"] else settings["n_kv_heads"]
    return Decoder(
        vocab_size=settings["vocab_size"],
        embedding_rows=settings["embedding_size"] or settings["vocab_size"],
        d_model=settings["d_model"],
        num_layers=settings["n_layers"],
        num_heads=settings["n_heads"],
        num_kv_heads=None if kv_heads == settings["n_heads"] else kv_heads,
        d_ff=hidden // 2,
        norm=norm,
        norm_epsilon=float(settings["layer_norm_eps"]),  # YAML reads 1e-6 as a string
        norm_position="after" if settings["norm_after"] else "before",
        qk_norm=qk_norm,
        clip_qkv=_optional_float(settings["clip_qkv"]),
        rope_theta=float(settings["rope_theta"]),
        tied_head=settings["weight_tying"],
        init=settings["init_fn"],
        init_std=float(settings["init_std"]),
        init_cutoff=_optional_float(settings["init_cutoff_factor"]),
        loss_denominator="all",
    )


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
