"""The keys of a YAML file of OLMo's trainer, and the fate of each.

A key is used, has no effect here, or is not supported. The last is an error unless the user ignores
the key by name: a run never differs from its YAML silently.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jaxpretrain.config.errors import InputError

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
        """Returns one line a key of the file: used, no effect, or ignored.

        Raises:
          InputError: a key is not supported; the line says what to do.
        """
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
