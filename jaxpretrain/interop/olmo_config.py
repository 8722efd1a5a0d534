"""A config of OLMo's own trainer: the fate of each key, and the `model` group -> `Decoder`.

A key is used, has no effect here, or is not supported. The last is an error unless the user ignores
the key by name: a run never differs from its YAML silently.

Source: allenai/OLMo `olmo/config.py` (ModelConfig, with its defaults) and `olmo/model.py`. Runs and
checkpoints both read it here. What only training asks for (dropout, precision, the z-loss) is left
to the reader of runs.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.layers import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.config import FullMegatron, Mitchell, Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.rotary import Rope

NO_EFFECT: dict[str, str] = {
    "the folder of a run is --workdir": (
        "run_name save_folder remote_save_folder save_overwrite try_load_latest_save"
    ),
    "says how fast or where, not what": (
        "activation_checkpointing compile compile.* ddp ddp.* gen1_gc_interval "
        "data.num_workers data.persistent_workers data.pin_memory data.prefetch_factor "
        "data.timeout device_eval_batch_size device_train_batch_size device_train_grad_accum "
        "device_train_microbatch_size fsdp.hybrid_sharding_num_model_replicas "
        "fsdp.sharding_strategy fsdp.use_orig_params fsdp.wrapping_strategy hf_datasets_cache_dir "
        "model.block_group_size model.flash_attention model.init_device model.precision"
    ),
    "says what is logged and saved; see --config.monitor and --config.checkpoint": (
        "canceled_check_interval console_log_interval extra_steps_after_cancel "
        "force_save_unsharded module_outputs_save_steps new_style_checkpoints "
        "no_pre_train_checkpoint optimizer.metrics_log_interval optimizer.record_update_metrics "
        "python_profiling save_data_indices save_interval_* save_num_* sharded_checkpointer "
        "speed_monitor speed_monitor.* torch_profiling wandb wandb.*"
    ),
    "belongs to OLMo's command line": "dry_run time_limit",
    "belongs to a checkpoint to begin with, and there is none": (
        "load_path_sharded_checkpointer restore_dataloader reset_trainer_state"
    ),
    "sequences are never padded": "data.pad_direction model.pad_token_id",
    "an epoch is cut to whole batches, in OLMo to whole rounds of its GPUs": "data.drop_last",
    "OLMo's own trainer reads it nowhere: the z-loss has 1e-4": "auxiliary_loss_multiplier",
    "files hold token ids already": "tokenizer tokenizer.*",
    "does not exist without ALiBi": "model.alibi_bias_max",
    "not evaluated; training is the same": "evaluators eval_on_load eval_subset_num_batches",
}
"""The patterns of keys that change no result here, by the reason."""


class OlmoKeys:
    """The values of a YAML file by dotted key, and notes on the keys that were used."""

    def __init__(self, file: Path, ignored: Collection[str] = ()):
        self.file = file
        self._values = _resolved(dict(_flatten(_load(file))))
        self._ignored = set(ignored)
        self._fates: dict[str, str] = {}
        self._unsupported: list[str] = []
        if unknown := self._ignored - self._values.keys():
            raise InputError(f"{file}: has no key {', '.join(sorted(unknown))} to ignore")

    def take(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key, or `default`, which is OLMo's, where the file has none."""
        self._fates[key] = "used"
        return self._values.get(key, default)

    def number(self, key: str, default: float | None = None) -> Any:
        """Returns the number of a key, an int if it is whole; YAML reads 5e12 as a text."""
        value = self.take(key, default)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(f"{self.file}: {key}={value!r} is not a number") from None
        return int(number) if math.isfinite(number) and number == int(number) else number

    def size(self, key: str, default: int) -> int:
        """Returns the positive whole number of a key."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{self.file}: {key}={value} is not a positive whole number")
        return value

    def only(self, key: str, *supported: object, default: object = None) -> Any:
        """Returns the value of a key; an unsupported one is refused, and the first stands in."""
        value = self.take(key, default)
        if value in supported:
            return value
        names = " or ".join(map(str, supported))
        given = "" if key in self._values else ", which is not given and OLMo's default"
        self.refuse(key, f"{key}={value}{given} (here: {names})")
        return supported[0]

    def skip(self, key: str, reason: str) -> None:
        """Notes that a key has no effect in this file."""
        self._fates[key] = f"no effect: {reason}"

    def refuse(self, key: str, trouble: str) -> None:
        """Notes that a key is not supported."""
        self._fates[key] = "ignored, as asked: what it says is not done"
        if key not in self._ignored:
            self._unsupported.append(trouble)

    def report(self) -> list[str]:
        """Returns a line for each key: used, no effect, or ignored; InputError for others."""
        reasons = {pattern: why for why, names in NO_EFFECT.items() for pattern in names.split()}
        for key in [key for key in self._values if key not in self._fates]:
            match = next((reasons[p] for p in reasons if fnmatchcase(key, p)), None)
            if match is None:
                self.refuse(key, f"{key}={_short(self._values[key])} (not known here)")
            else:
                self.skip(key, match)
        self.check(
            ". To train without what a key says, take it out of the file, or name it: "
            "FILE.yaml,ignore=KEY"
        )
        return [f"{key} = {_short(value)}: {self._fates[key]}" for key, value in self]

    def check(self, way_out: str = "") -> None:
        """Raises InputError where a key that was read is not supported."""
        if self._unsupported:
            raise InputError(f"{self.file}: not supported: {'; '.join(self._unsupported)}{way_out}")

    def __iter__(self) -> Iterator[tuple[str, object]]:
        return iter(self._values.items())


def _load(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: is no YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{file}: is no config of OLMo's trainer: it has no keys")
    return content


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key != "data.datasets":
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _resolved(values: dict[str, object]) -> dict[str, Any]:
    """Returns the values with each `${other.key}` replaced; OmegaConf's functions stay."""

    def follow(value: object) -> object:
        match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        return follow(values[match[1]]) if match and match[1] in values else value

    return {key: follow(value) for key, value in values.items()}


def _short(value: object) -> str:
    return f"({len(value)} entries)" if isinstance(value, list | dict) else str(value)


def read_decoder(keys: OlmoKeys) -> Decoder:
    """Returns the model that the keys describe, with the loss and the rounding of OLMo's trainer.

    A setting that a `Decoder` cannot have is kept by `keys`, which raises it in `check`.

    Raises InputError where there is no such group, or a size is not a positive whole number.
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
    vocab_size, clip_qkv = keys.size("model.vocab_size", 50257), keys.number("model.clip_qkv")
    return Decoder(
        vocab_size=vocab_size,
        embedding_rows=keys.number("model.embedding_size", 50304) or vocab_size,
        d_model=d_model,
        num_layers=keys.size("model.n_layers", 12),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(keys, num_heads),
        d_ff=(hidden or ratio * d_model) // 2,  # OLMo counts both of SwiGLU's halves
        norm_position="after" if keys.take("model.norm_after", False) else "before",
        clip_qkv=None if clip_qkv is None else float(clip_qkv),
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
    cutoff = cutoff and float(cutoff)
    if name == "mitchell":
        return Mitchell(cutoff)
    return Normal(std, cutoff) if name == "normal" else FullMegatron(std, cutoff)


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
