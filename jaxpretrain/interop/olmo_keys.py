"""The keys of a YAML file of OLMo's trainer, and what becomes of each.

A key is used, or it has no effect here, or it is not supported. The last is an error unless the key
is named as one to ignore: a run never differs from its YAML without a word.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jaxpretrain.config.errors import InputError

NO_EFFECT: dict[str, tuple[str, ...]] = {
    "the folder of a run is --workdir": (
        "run_name",
        "save_folder",
        "remote_save_folder",
        "save_overwrite",
        "try_load_latest_save",
    ),
    "says how fast or where, not what": (
        "activation_checkpointing",
        "compile",
        "compile.*",
        "data.num_workers",
        "data.persistent_workers",
        "data.pin_memory",
        "data.prefetch_factor",
        "data.timeout",
        "ddp",
        "ddp.*",
        "device_eval_batch_size",
        "device_train_batch_size",
        "device_train_grad_accum",
        "device_train_microbatch_size",
        "fsdp.hybrid_sharding_num_model_replicas",
        "fsdp.sharding_strategy",
        "fsdp.use_orig_params",
        "fsdp.wrapping_strategy",
        "gen1_gc_interval",
        "hf_datasets_cache_dir",
        "model.block_group_size",
        "model.flash_attention",
        "model.init_device",
        "model.precision",
    ),
    "says what is logged and saved; see --config.monitor and --config.checkpoint": (
        "canceled_check_interval",
        "console_log_interval",
        "extra_steps_after_cancel",
        "force_save_unsharded",
        "module_outputs_save_steps",
        "new_style_checkpoints",
        "no_pre_train_checkpoint",
        "optimizer.metrics_log_interval",
        "optimizer.record_update_metrics",
        "python_profiling",
        "save_data_indices",
        "save_interval_*",
        "save_num_*",
        "sharded_checkpointer",
        "speed_monitor",
        "speed_monitor.*",
        "torch_profiling",
        "wandb",
        "wandb.*",
    ),
    "belongs to OLMo's command line": ("dry_run", "time_limit"),
    "belongs to a checkpoint to begin with, and there is none": (
        "load_path_sharded_checkpointer",
        "restore_dataloader",
        "reset_trainer_state",
    ),
    "sequences are never padded": ("data.pad_direction", "model.pad_token_id"),
    "an epoch is cut to whole batches, in OLMo to whole rounds of its GPUs": ("data.drop_last",),
    "OLMo's own trainer reads it nowhere: the z-loss has 1e-4": ("auxiliary_loss_multiplier",),
    "files hold token ids already": ("tokenizer", "tokenizer.*"),
    "does not exist without ALiBi": ("model.alibi_bias_max",),
    "not evaluated; training is the same": (
        "evaluators",
        "eval_on_load",
        "eval_subset_num_batches",
    ),
}
"""Reason -> patterns of the keys that change no result here."""


class OlmoKeys:
    """The values of a YAML file by dotted key; `take` and its kin remember what was asked for."""

    def __init__(self, file: Path, ignored: Collection[str] = ()):
        self.file = file
        self._values = _resolved(dict(_flatten(_load(file))))
        self._ignored = set(ignored)
        self._fates: dict[str, str] = {}
        self._unsupported: list[str] = []
        if unknown := self._ignored - self._values.keys():
            raise InputError(f"{file}: has no key {', '.join(sorted(unknown))} to ignore")

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default`, which is OLMo's, where the file has none."""
        self._fates[key] = "used"
        return self._values.get(key, default)

    def number(self, key: str, default: float | None = None) -> Any:
        """As `take`, for a number; YAML reads 5e12 as a text. Whole numbers are int."""
        value = self.take(key, default)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(f"{self.file}: {key}={value!r} is not a number") from None
        return int(number) if math.isfinite(number) and number == int(number) else number

    def size(self, key: str, default: int) -> int:
        """As `number`, for a positive whole number."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{self.file}: {key}={value} is not a positive whole number")
        return value

    def only(self, key: str, *supported: Any, default: Any = None) -> Any:
        """As `take`, for one of the values that there are here. The first stands in for others."""
        value = self.take(key, default)
        if value in supported:
            return value
        names = " or ".join(map(str, supported))
        given = "" if key in self._values else ", which is not given and OLMo's default"
        self.refuse(key, f"{key}={value}{given} (here: {names})")
        return supported[0]

    def skip(self, key: str, reason: str) -> None:
        """Says that a key has no effect in this file."""
        self._fates[key] = f"no effect: {reason}"

    def refuse(self, key: str, trouble: str) -> None:
        """Says that a key cannot be followed."""
        self._fates[key] = "ignored, as asked: what it says is not done"
        if key not in self._ignored:
            self._unsupported.append(trouble)

    def report(self) -> list[str]:
        """One line a key of the file: used, no effect, or ignored.

        Raises:
          InputError: a key that is not supported, with the way out.
        """
        reasons = {pattern: why for why, patterns in NO_EFFECT.items() for pattern in patterns}
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
        """Raises InputError when a key that was asked for is not supported."""
        if self._unsupported:
            raise InputError(f"{self.file}: not supported: {'; '.join(self._unsupported)}{way_out}")

    def __iter__(self) -> Iterator[tuple[str, Any]]:
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


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key != "data.datasets":
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """With each `${other.key}` in its place; OmegaConf's functions stay as they are."""

    def follow(value: Any) -> Any:
        match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        return follow(values[match[1]]) if match and match[1] in values else value

    return {key: follow(value) for key, value in values.items()}


def _short(value: Any) -> str:
    return f"({len(value)} entries)" if isinstance(value, list | dict) else str(value)
