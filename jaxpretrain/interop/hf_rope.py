"""Rotary positions of Hugging Face's `config.json` <-> `Decoder.rope`.

Read as transformers 5 reads them: for all layers alike, or for each kind of layer, as OLMo 3 has
it. transformers 4 writes `rope_scaling` and `rope_theta`, transformers 5 `rope_parameters`; a file
with both must say the same in both.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.olmo.rotary import Rope, Yarn

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers in `config.json`."""

JsonObject = dict[str, Any]
"""An object in `config.json`; that of rotary positions is read without its nulls."""

_YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor")
_KEYS = {"default": ("rope_type", "rope_theta"), "yarn": ("rope_type", "rope_theta", *_YARN)}
_ONLY = {"partial_rotary_factor": 1.0, "mscale": 0, "mscale_all_dim": 0, "truncate": True}
"""Keys with the only value that a `Decoder` can have."""


@dataclass(frozen=True)
class RopeKeys:
    """Rotary positions in a `config.json`; its class decides about null and missing keys."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    original_max_position_embeddings: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    partial_rotary_factor: float | None = None
    truncate: bool | None = None


@dataclass(frozen=True)
class RopeOfKinds(RopeKeys):
    """Rotary positions as transformers 5 writes them, for kinds of layers or for all."""

    full_attention: RopeKeys | None = None
    sliding_attention: RopeKeys | None = None


def read_rope(
    config: JsonObject,
    defaults: JsonObject,
    kinds: Collection[str] | None,
    head_dim: int,
    where: str,
) -> Rope | Yarn:
    """Returns the rotary positions of a config.json; YaRN is that of the layers of full attention.

    `defaults` are those of the class, `kinds` the kinds of layers in use, if the class gives each
    kind its own positions.

    Raises InputError where a `Decoder` cannot have such positions, or two keys contradict each
    other.
    """
    new = _object(config, "rope_parameters", where)
    full, sliding = (new, {}) if kinds is None else _of_kinds(new, where)
    full = _one_spelling(config, defaults["rope_theta"], full, bool(new), where)
    context = config.get("max_position_embeddings", defaults["max_position_embeddings"])
    yarn = _read_yarn(full, context, where) if kinds is None or FULL in kinds else None
    theta = full["rope_theta"]
    if kinds is not None and SLIDING in kinds:
        if _read_yarn(sliding, context, where) is not None:
            raise InputError(
                f"{where}: rope_type=yarn is not supported for sliding layers, only default"
            )
        # transformers 5 gives a rope_theta beside rope_parameters to the other layers alone.
        theta = _theta(sliding.get("rope_theta", defaults["rope_theta"]), where)
        if FULL in kinds and theta != full["rope_theta"]:
            named = "" if "rope_theta" in sliding else " (transformers' own, as none is named)"
            raise InputError(
                f"{where}: sliding layers have another rope_theta, which is not supported: "
                f"{theta:g}{named} beside {full['rope_theta']:g}"
            )
    if yarn is None:
        return Rope(theta)
    yarn = replace(yarn, theta=theta)
    try:
        yarn.check(head_dim // 2)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return yarn


def write_yarn(rope: Rope | Yarn) -> JsonObject:
    """Returns YaRN as transformers takes it; {} for plain positions."""
    if isinstance(rope, Rope):
        return {}
    return {
        "rope_type": "yarn",
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_length,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "attention_factor": rope.magnitude,
    }


def _object(config: JsonObject, key: str, where: str) -> JsonObject:
    """Returns an object of config.json without its nulls and with one name for its type."""
    found = {name: item for name, item in (config.get(key) or {}).items() if item is not None}
    kind = found.pop("type", None)
    if kind is not None and found.setdefault("rope_type", kind) != kind:
        raise InputError(f"{where}: type={kind} and rope_type={found['rope_type']} in {key} differ")
    return found


def _of_kinds(new: JsonObject, where: str) -> list[JsonObject]:
    """Returns the positions of full and of sliding layers."""
    if other := [key for key in new if key not in (FULL, SLIDING)]:
        raise InputError(
            f"{where}: rope_parameters of this class hold {FULL} and {SLIDING}, not {other[0]}"
        )
    return [_object(new, kind, where) for kind in (FULL, SLIDING)]


def _one_spelling(
    config: JsonObject, default_theta: float, full: JsonObject, is_new: bool, where: str
) -> JsonObject:
    """Returns the positions that `rope_theta`, `rope_scaling` and `rope_parameters` describe."""
    old = _object(config, "rope_scaling", where)
    top = config.get("rope_theta")
    silent = {"rope_type": "default", "rope_theta": default_theta if top is None else top}
    if old and is_new and silent | old != silent | full:
        raise InputError(
            f"{where}: rope_scaling and rope_parameters differ; keep the one that the model was "
            "trained with"
        )
    rope = silent | old | full
    if top is not None and rope["rope_theta"] != top:
        raise InputError(
            f"{where}: rope_theta={top} beside rope_parameters with rope_theta="
            f"{rope['rope_theta']}; keep the one that the model was trained with"
        )
    return rope | {"rope_theta": _theta(rope["rope_theta"], where)}


def _theta(value: float, where: str) -> float:
    theta = float(value)
    if not 0 < theta < math.inf:
        raise InputError(f"{where}: rope_theta is {theta:g}, but must be positive")
    return theta


def _read_yarn(rope: JsonObject, context: object, where: str) -> Yarn | None:
    kind = rope.get("rope_type", "default")
    if kind not in _KEYS:
        raise InputError(f"{where}: rope_type={kind} is not supported, only default and yarn")
    for key, value in rope.items():
        if key not in _KEYS[kind] and not (key in _ONLY and value == _ONLY[key]):
            raise InputError(f"{where}: {key}={value} is not supported with rope_type={kind}")
    if kind == "default":
        return None
    if "factor" not in rope:
        raise InputError(f"{where}: its YaRN parameters are not complete: 'factor'")
    rope = {"original_max_position_embeddings": context, **rope}
    values = {key: float(rope[key]) for key in _YARN if key in rope}
    length = values["original_max_position_embeddings"]
    if not length.is_integer():
        raise InputError(f"{where}: original_max_position_embeddings={length} is not whole")
    yarn = Yarn(
        factor=values["factor"],
        original_length=int(length),
        beta_fast=values.get("beta_fast") or 32.0,  # to transformers, 0 is silence
        beta_slow=values.get("beta_slow") or 1.0,
    )
    scale = values.get("attention_factor")
    if scale is not None and not math.isclose(scale, yarn.magnitude, rel_tol=1e-6):
        raise InputError(
            f"{where}: attention_factor={scale} is not supported, only {yarn.magnitude:g}, which "
            f"follows from factor={yarn.factor:g}"
        )
    return yarn
