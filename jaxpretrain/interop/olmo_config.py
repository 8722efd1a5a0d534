"""The `model` group of a config of OLMo's own trainer -> `Decoder`.

Source: allenai/OLMo `olmo/config.py` (ModelConfig, with its defaults) and `olmo/model.py`. Runs and
checkpoints both read it here. What only training asks for (dropout, precision, the z-loss) is left
to the reader of runs.
"""

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.olmo_keys import OlmoKeys
from jaxpretrain.models.norms import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.initial_weights import FullMegatron, Mitchell, Normal
from jaxpretrain.models.olmo.rotary import Rope


def read_decoder(keys: OlmoKeys) -> Decoder:
    """Returns the model that the keys describe, with the loss and the rounding of OLMo's trainer.

    A setting that a `Decoder` cannot have is kept by `keys`, which raises it in `check`.

    Raises:
      InputError: there is no such group, or a size is not a positive whole number.
    """
    if not any(key.startswith("model.") for key, _ in keys):
        raise InputError(f"{keys.file} is not the config of an OLMo model: it has no group 'model'")
    keys.only("model.activation_type", "swiglu", default="swiglu")
    keys.only("model.block_type", "sequential", default="sequential")
    keys.only("model.rope", True, default=False)
    keys.only("model.rope_full_precision", True, default=True)
    for name in ("alibi", "embedding_layer_norm", "scale_logits"):
        keys.only(f"model.{name}", False, default=False)
    keys.only("model.include_bias", False, default=True)
    d_model, num_heads = keys.size("model.d_model", 768), keys.size("model.n_heads", 12)
    ratio, hidden = keys.size("model.mlp_ratio", 4), keys.number("model.mlp_hidden_size")
    vocab_size = keys.size("model.vocab_size", 50257)
    return Decoder(
        vocab_size=vocab_size,
        embedding_rows=keys.number("model.embedding_size", 50304) or vocab_size,
        d_model=d_model,
        num_layers=keys.size("model.n_layers", 12),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(keys, num_heads),
        d_ff=(hidden or ratio * d_model) // 2,  # OLMo counts both of SwiGLU's halves
        norm_position="after" if keys.take("model.norm_after", False) else "before",
        clip_qkv=_optional_float(keys.number("model.clip_qkv")),
        rope=Rope(float(keys.number("model.rope_theta", 10000))),
        tied_head=keys.take("model.weight_tying", True),
        init=_init(keys),
        loss_denominator="all",
        norm=_norm(keys),
        qk_norm=bool(keys.take("model.attention_layer_norm", False)),
    )


def _init(keys: OlmoKeys) -> Normal | Mitchell | FullMegatron:
    name = keys.only("model.init_fn", "normal", "mitchell", "full_megatron", default="normal")
    std = float(keys.number("model.init_std", 0.02))
    # OLMo reads 0 as not given. Only `normal` is then not cut.
    cutoff = keys.number("model.init_cutoff_factor") or (None if name == "normal" else 3.0)
    cutoff = _optional_float(cutoff)
    if name == "mitchell":
        return Mitchell(cutoff)
    return Normal(std, cutoff) if name == "normal" else FullMegatron(std, cutoff)


def _optional_float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _num_kv_heads(keys: OlmoKeys, num_heads: int) -> int | None:
    """Returns OLMo's `effective_n_kv_heads`; None stands for as many as query heads."""
    given = keys.number("model.n_kv_heads")
    is_shared = keys.take("model.multi_query_attention")
    if is_shared is None:
        return None if given == num_heads else given
    implied = 1 if is_shared else num_heads
    if given not in (None, implied):
        keys.refuse(
            "model.n_kv_heads",
            f"model.n_kv_heads={given} beside model.multi_query_attention={is_shared}",
        )
    return None if implied == num_heads else implied


def _norm(keys: OlmoKeys) -> LayerNorm | RMSNorm:
    """Returns LayerNorm without parameters or RMSNorm with a scale; neither has a bias here."""
    kind = keys.only("model.layer_norm_type", "rms", "default", default="default")
    keys.only("model.layer_norm_with_affine", kind == "rms", default=True)
    affine = "model.attention_layer_norm_with_affine"
    if keys.take("model.attention_layer_norm", False):
        keys.only(affine, kind == "rms", default=True)
    else:
        keys.skip(affine, "there is no norm of queries and keys")
    epsilon = float(keys.number("model.layer_norm_eps", 1e-5))
    if kind == "rms":
        keys.only("model.bias_for_layer_norm", False, None)
        return RMSNorm(epsilon, rounding="before_scale")
    keys.skip("model.bias_for_layer_norm", "the norms have no parameters")
    return LayerNorm(epsilon)
