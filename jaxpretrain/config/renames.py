"""The fields that had other names or values in earlier versions, for errors and for kept runs.

One row a field. Its old path on a command line is an error that says what to set now; a config that
an earlier version has saved is read as if it were written today.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

Group = dict[str, Any]
"""A group of fields in a saved config; a choice of a class stands under "class"."""

Upgrade = Callable[[Group, Any], None]
"""A function that writes the value of an old field into the group that held the field."""


@dataclass(frozen=True)
class Rename:
    """A field that is written in another way now."""

    old: str
    """The path that it had, such as "data.order_chunk"; `*` stands for any key."""
    now: str
    """The text of an error after the old path: the new path, or advice, in which `*` stands for the
    key that the one of `old` has met. It is the old path where only the values have changed."""
    upgrade: Upgrade | None = None
    """Writes the old value into the group that held the field. None: the value is dropped."""
    upgrades_whole: bool = False
    """Gives `upgrade` the whole config in place of the group, for a field that changes groups."""

    @property
    def has_moved(self) -> bool:
        """True where the old path is an error now, and not only its old values."""
        return self.now != self.old


def moved(into: str, name: str, default: object = ..., of: Collection[str] = ()) -> Upgrade:
    """Returns an upgrade that puts the value into a group in the group, where there is one.

    A value that is the default is dropped: the new place need not have the field. `of` names the
    choices of the inner group that have it; (): all have it.
    """

    def upgrade(group: Group, value: object) -> None:
        inner = group.get(into)
        if value != default and isinstance(inner, dict) and (not of or inner.get("class") in of):
            inner.setdefault(name, value)

    return upgrade


def chosen(name: str, words: Mapping[str, str]) -> Upgrade:
    """Returns an upgrade of a word to the choice of the class that it names now."""

    def upgrade(group: Group, value: object) -> None:
        choice = words.get(value) if isinstance(value, str) else None
        group[name] = {"class": choice} if choice else value

    return upgrade


def one_of(name: str, choice: str) -> Upgrade:
    """Returns an upgrade of a group that was the only one, to the choice of its class."""

    def upgrade(group: Group, value: object) -> None:
        group[name] = {"class": choice, **value} if isinstance(value, dict) else value

    return upgrade


def grouped(name: str, choice: str, field: str, default: object = ..., **others: object) -> Upgrade:
    """Returns an upgrade that puts the value into an optional group, made unless it is the default.

    `choice` is the name of the group's class, `others` are other fields of a group that is made.
    """

    def upgrade(group: Group, value: object) -> None:
        group.setdefault(name, None)
        if value != default:
            there = group[name]
            base = there if isinstance(there, dict) else {"class": choice, **others}
            group[name] = {**base, field: value}

    return upgrade


def _only(name: str, *values: object) -> Upgrade:
    """Returns an upgrade that drops these values; another stays, and is refused as unknown."""

    def upgrade(group: Group, value: object) -> None:
        if value not in values:
            group[name] = value

    return upgrade


def _beta(group: Group, value: object, *, index: int) -> None:
    """Fills AdamW's, Lion's and Muon's `betas`; Adafactor still has `beta1` and `beta2`."""
    if group.get("class") == "adafactor":
        group[f"beta{index + 1}"] = value
    else:
        late = 0.99 if group.get("class") == "lion" else 0.95
        group.setdefault("betas", [0.9, late])[index] = value


def _rate_scale(group: Group, value: object) -> None:
    """Keeps a multiple that was set by hand; another one follows from `rate_scaling`."""
    if value is not None and group.get("rate_scaling") is None:
        group["rate_scaling"] = {"class": "rate_scaling", "base_batch": 1, "cap": value}


def _from_step(group: Group, value: object) -> None:
    is_bolt_on = group.get("class") == "bolt_on_warmup"
    group["from_step" if is_bolt_on else "start"] = value


def _yarn(group: Group, yarn: object) -> None:
    if isinstance(yarn, dict):
        group["rope"] = {**group.get("rope", {}), **yarn, "class": "yarn"}


def _reconstructions(group: Group, value: object) -> None:
    if isinstance(value, dict):
        group["samples"] = {**value, "class": "reconstructions"}


def _deterministic(train: Group, value: object) -> None:
    if value:
        options = train.get("compiler_options", {})
        train["compiler_options"] = {"xla_gpu_deterministic_ops": True, **options}


def _ema(train: Group, value: object) -> None:
    train["ema"] = {"class": "ema", "decay": value} if isinstance(value, float) else value


def _evaluated_weights(config: Group, value: object) -> None:
    ema = config.get("train", {}).get("ema")
    if value == "average" and ema is not None:
        ema.setdefault("evaluate", True)


# Words that became choices, what errors say, and upgrades, where a row has no room for them.
_ORDERS = {"olmo": "olmo_order", "olmo_core": "olmo_core_order", "hashed": "hashed_order"}
_NORMS = {"layernorm": "layer_norm", "rmsnorm": "rms_norm"}
_INITS = {name: name for name in ("normal", "mitchell", "full_megatron")}
_HAVE_STD = ("normal", "full_megatron")

_PLATEAU = "=warmup_stable_decay, which holds its peak"
_SCALING = "optim.rate_scaling=rate_scaling, then optim.rate_scaling"
_SAMPLES = "eval.samples=continuations, then eval.samples"
_PICTURES = "eval.samples=reconstructions, then eval.samples.num_images"
_SKIP = "train.on_bad_step=skip, then train.on_bad_step"
_OPTION = "train.compiler_options.xla_gpu_deterministic_ops=true"
_EVALUATED = "train.ema=ema, then train.ema.evaluate=true"
_RATE_AT = "nothing; update k has the learning rate of point k of the schedule"
_MFU = "nothing; perf/mfu counts causal attention, perf/mfu_full_attention all pairs"

_ROUNDING = moved("norm", "rounding", of=["rms_norm"])
_BASE_BATCH = grouped("rate_scaling", "rate_scaling", "base_batch", None)
_PROMPTS = grouped("samples", "continuations", "prompts", [])
_NUM_TOKENS = moved("samples", "num_tokens", of=["continuations"])
_OUTLIERS = grouped("on_bad_step", "skip", "outliers", None, not_finite=False)


def _data(group: str) -> tuple[Rename, ...]:
    """Returns the rows of the data at a path."""
    order = f"{group}.order"
    olmo, core = f"of {order}=olmo_order", f"of {order}=olmo_core_order"
    epochs = moved("order", "epoch_multiple")
    indices = moved("order", "global_indices", None)
    return (
        Rename(f"{group}.name", "leave it out; a set is named by its manifest, folder or dataset"),
        Rename(order, order, chosen("order", _ORDERS)),
        Rename(f"{group}.order_chunk", f"{order}.chunk, {core}", moved("order", "chunk", 1)),
        Rename(f"{group}.epoch_multiple", f"{order}.epoch_multiple", epochs),
        Rename(f"{group}.global_indices", f"{order}.global_indices, {olmo}", indices),
    )


def _raw(group: str) -> tuple[Rename, ...]:
    """Returns the rows of the token files at a path."""
    defaults = {"dtype": "uint16", "trust_dtype": False, "label_mask": None}
    after = f"after {group}.raw=raw_tokens"
    upgrades = {x: grouped("raw", "raw_tokens", x, default) for x, default in defaults.items()}
    return tuple(
        Rename(f"{group}.{x}", f"{group}.raw.{x}, {after}", upgrade)
        for x, upgrade in upgrades.items()
    )


def _plateau(schedule: str) -> Rename:
    return Rename(f"{schedule}.plateau", schedule + _PLATEAU, _only("plateau", 0, "0", "0 steps"))


RENAMES: tuple[Rename, ...] = (
    *_data("data"),
    *_data("eval.probe.data"),
    *_raw("data"),
    *_raw("data.sources.*"),
    Rename("monitor.mfu_attention", _MFU),
    Rename("model.norm", "model.norm", chosen("norm", _NORMS)),
    Rename("model.norm_epsilon", "model.norm.epsilon", moved("norm", "epsilon")),
    Rename("model.norm_rounding", "model.norm.rounding", _ROUNDING),
    Rename("model.init", "model.init", chosen("init", _INITS)),
    Rename("model.init_std", "model.init.std", moved("init", "std", of=_HAVE_STD)),
    Rename("model.init_cutoff", "model.init.cutoff", moved("init", "cutoff")),
    Rename("model.rope_theta", "model.rope.theta", grouped("rope", "rope", "theta")),
    Rename("model.yarn", "model.rope=yarn, then model.rope.factor and so on", _yarn),
    Rename("model.loss_chunk", "nothing; the loss takes 512 positions of a sequence at a time"),
    Rename("optim.beta1", "optim.betas.0", partial(_beta, index=0)),
    Rename("optim.beta2", "optim.betas.1", partial(_beta, index=1)),
    Rename("optim.rate_base_batch", f"{_SCALING}.base_batch", _BASE_BATCH),
    Rename("optim.rate_scale_cap", f"{_SCALING}.cap", moved("rate_scaling", "cap")),
    Rename("optim.rate_scale", f"{_SCALING}.base_batch and .cap", _rate_scale),
    Rename("optim.rate_at", _RATE_AT, _only("rate_at", "after_count")),
    *map(_plateau, (f"optim.schedule{'.inner' * depth}" for depth in range(3))),
    Rename("optim.schedule.start", "optim.schedule.from_step of bolt_on_warmup", _from_step),
    Rename("eval.prompts", f"{_SAMPLES}.prompts", _PROMPTS),
    Rename("eval.sample_tokens", f"{_SAMPLES}.num_tokens", _NUM_TOKENS),
    Rename("eval.reconstructions", _PICTURES, _reconstructions),
    Rename("eval.batch_size", "nothing; an evaluation batch is a training microbatch"),
    Rename("eval.task_seed", "nothing; eval.task_items takes the first items of each task"),
    Rename("mesh", "mesh", one_of("mesh", "mesh")),
    Rename("train.on_bad_step", "train.on_bad_step", chosen("on_bad_step", {"skip": "skip"})),
    Rename("train.skip_outliers", f"{_SKIP}.outliers", _OUTLIERS),
    Rename("train.max_skipped", f"{_SKIP}.max_in_row", moved("on_bad_step", "max_in_row")),
    Rename("train.deterministic", _OPTION, _deterministic),
    Rename("train.ema", "train.ema", _ema),
    Rename("eval.weights", _EVALUATED, _evaluated_weights, upgrades_whole=True),
)
"""The renamed fields. A row comes after the rows of the groups that its upgrade writes into."""


def renamed(path: str, table: tuple[Rename, ...] = RENAMES) -> str | None:
    """Returns what is written now instead of a path, for an error; None where it was never one."""
    keys = path.split(".")
    for row in table:
        pattern = row.old.split(".")
        if row.has_moved and _matches(pattern, keys):
            return row.now.replace("*", keys[pattern.index("*")] if "*" in pattern else "*")
    return None


def upgraded(config: Mapping[str, Any], table: tuple[Rename, ...] = RENAMES) -> dict[str, Any]:
    """Returns a saved config as today's version would have written it."""
    result = copy.deepcopy(dict(config))
    for row in table:
        *parents, name = row.old.split(".")
        for group in _groups(result, parents):
            if name in group:
                value = group.pop(name)
                if row.upgrade is not None:
                    row.upgrade(result if row.upgrades_whole else group, value)
    return result


def _matches(pattern: list[str], keys: list[str]) -> bool:
    same = (wanted in ("*", key) for wanted, key in zip(pattern, keys, strict=False))
    return len(keys) >= len(pattern) and all(same)


def _groups(value: object, parents: list[str]) -> list[Group]:
    """Returns the groups at a path, more than one where it has a `*`."""
    if not parents:
        return [value] if isinstance(value, dict) else []
    if not isinstance(value, dict | list):
        return []
    items: dict[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else value
    key, *rest = parents
    below = items.values() if key == "*" else [items.get(key)]
    return [group for part in below for group in _groups(part, rest)]
