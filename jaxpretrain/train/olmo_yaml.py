"""Reads the YAML of a run of OLMo's own trainer into an `Experiment`.

Fields that the YAML lacks have OLMo's defaults (olmo/config.py): GPT-2's architecture with
dropout and biases, LionW, epsilon 1e-5. Settings that are not supported are refused.
"""

import hashlib
from collections.abc import Collection
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.order.order import OlmoOrder
from jaxpretrain.data.text.corpus import RawTokens
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.masks import InstanceFilter
from jaxpretrain.evals.config import Eval
from jaxpretrain.interop.olmo_config import OlmoKeys, read_decoder
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim import schedules
from jaxpretrain.optim.layers import ParameterKind
from jaxpretrain.optim.optimizers import AdamW, Lion
from jaxpretrain.storage.files import cache_dir, write_atomically
from jaxpretrain.train.experiment import Checkpoint, Experiment, Train


class OlmoYaml(NamedTuple):
    """The experiment of a YAML file, with a line for each key that says what it became."""

    experiment: Experiment
    report: list[str]


def read_olmo_yaml(file: Path, ignored: Collection[str] = ()) -> OlmoYaml:
    """Returns the run that a file describes; the keys in `ignored` are left out.

    InputError: the file cannot be read, or asks for something that is not supported.
    """
    keys = OlmoKeys(file, ignored)
    _refuse_other_beginnings(keys)
    planned, stop = _duration(keys), keys.number("stop_at")
    experiment = Experiment(
        model=_model(keys),
        data=_data(keys),
        # A run that stops before its time keeps the schedule of the whole.
        optim=_optimizer(keys, None if stop is None else planned),
        train=Train(
            duration=planned if stop is None else f"{stop} steps",
            batch_size=keys.number("global_train_batch_size", 512),
            microbatch_size="auto",
        ),
        eval=Eval(every=f"{keys.number('eval_interval', 1000)} steps"),
        checkpoint=Checkpoint(every=f"{keys.number('save_interval', 1000) or 0} steps"),
        seed=keys.number("seed", 6198),
    )
    return OlmoYaml(experiment, keys.report())


def _refuse_other_beginnings(keys: OlmoKeys) -> None:
    if (path := keys.take("load_path")) is not None:
        keys.refuse("load_path", f"load_path={path} (convert it, and set --config.init_from)")
    for key in ("epoch", "fast_forward_batches", "early_stopping_factor", "stop_after"):
        keys.only(key, None)
    keys.only("reset_optimizer_state", False, default=False)


def _model(keys: OlmoKeys) -> Decoder:
    """Returns the model, to which parts of OLMo's loss and precision belong here."""
    keys.only("model.scale_emb_init", False, default=False)
    keys.only("model.emb_init_std", None)
    for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        keys.only(f"model.{name}", 0.0, default=0.1)
    decoder, document_end = read_decoder(keys), None
    if keys.take("data.generate_doc_lengths", False):
        document_end = keys.number("model.eos_token_id", 50256)
    else:
        keys.skip("model.eos_token_id", "attention crosses the ends of documents")
    # The fused loss always has the z-loss.
    is_on = [keys.take(key, False) for key in ("softmax_auxiliary_loss", "fused_loss")]
    parts: dict[str, Any] = {"document_end": document_end, "z_loss": 1e-4 if any(is_on) else 0.0}
    return replace(decoder, remat="auto", **parts, **_precision(keys))


def _precision(keys: OlmoKeys) -> dict[str, Any]:
    """Returns the types: the residual stream has that of the products under FSDP, else float32."""
    precision = keys.only("precision", "amp_bf16", "fp32")
    is_sharded = keys.only("distributed_strategy", "fsdp", "ddp", None, default="fsdp") == "fsdp"
    if is_sharded:
        keys.only("fsdp.precision", "mixed", default="pure")
    else:
        keys.skip("fsdp.precision", "FSDP is off")
    return {
        "dtype": "float32" if precision == "fp32" else "bfloat16",
        "residual_dtype": None if is_sharded else "float32",
        "reduce_dtype": "float32",
    }


def _data(keys: OlmoKeys) -> TextData:
    keys.only("data.label_mask_paths", None)
    keys.only("data.generate_attention_mask", False, default=False)
    seed = keys.number("seed", 6198)
    keys.only("data.seed", None, seed)
    paths = keys.take("data.paths") or []
    for _, files in sorted((keys.take("data.datasets") or {}).items()):
        paths = [*paths, *files]
    if not paths:
        raise InputError(f"{keys.file}: data.paths names no token files")
    root, file_list = _file_list(keys.file, paths)
    dtype = keys.only("data.memmap_dtype", "uint16", "uint32", default="uint16")
    return TextData(
        root=root,
        file_list=file_list,
        seq_len=keys.number("model.max_sequence_length", 1024),
        raw=None if dtype == "uint16" else RawTokens(dtype),
        validation_split=None,
        order=OlmoOrder(epoch_multiple=keys.number("global_train_batch_size", 512)),
        instance_filter=_instance_filter(keys),
    )


def _file_list(file: Path, paths: list[str]) -> tuple[str | None, str]:
    """Returns (root, file of one path a line); URLs become paths below a root that is not set."""
    urls = [urlsplit(str(path)) for path in paths]
    is_remote = any(url.scheme for url in urls)
    lines = [url.path.lstrip("/") if url.scheme else url.path for url in urls]
    text = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    target = cache_dir() / "olmo_yaml" / f"{digest}.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text)
    return None if is_remote else str(file.resolve().parent), str(target)


def _instance_filter(keys: OlmoKeys) -> InstanceFilter | None:
    names = ("repetition_max_period", "repetition_min_period", "repetition_max_count")
    group = [f"data.instance_filter.{name}" for name in names]
    if keys.take("data.instance_filter") is None and not any(key in dict(keys) for key in group):
        return None
    longest, shortest, count = map(keys.number, group, (13, 1, 32))
    return InstanceFilter(max_period=longest, min_period=shortest, max_count=count)


def _optimizer(keys: OlmoKeys, horizon: str | None) -> AdamW | Lion:
    """Returns the optimizer; its schedule ends at `horizon` unless the file has a `t_max`."""
    keys.only("optimizer.no_decay_norm_and_bias", None)
    keys.only("optimizer.selective_updates", False, default=False)
    keys.only("max_grad_norm_ratio", None)
    beta1, beta2 = keys.take("optimizer.betas", (0.9, 0.95))
    embeddings = keys.take("optimizer.decay_embeddings", False)
    norms = keys.take("optimizer.decay_norm_and_bias", False)
    decays: dict[ParameterKind, bool] = {
        "kernel": True,
        "embedding": embeddings,
        "scale": norms,
        "bias": norms,
    }
    factor = keys.number("scheduler.grad_clip_warmup_factor")
    warmup = _amount(keys, "scheduler.grad_clip_warmup_steps", 0)
    shared: dict[str, Any] = {
        "schedule": _schedule(keys, horizon),
        "betas": (float(beta1), float(beta2)),
        "weight_decay": keys.number("optimizer.weight_decay", 0.01),
        "decayed": tuple(kind for kind, decay in decays.items() if decay),
        "clip_norm": keys.number("max_grad_norm"),
        "clip_warmup": "0 steps" if factor is None else warmup,
        "clip_warmup_factor": 1.0 if factor is None else float(factor),
    }
    if keys.only("optimizer.name", "adamw", "lionw", default="lionw") == "lionw":
        keys.skip("optimizer.eps", "Lion has none")
        return Lion(**shared)
    epsilon = keys.number("optimizer.eps", 1e-5)
    return AdamW(epsilon=epsilon, bias_correction="by_step", **shared)


_SHAPES: dict[str, schedules.CosineShape] = {
    "cosine_with_warmup": "cosine",
    "cosine_linear_envelope": "cosine_linear",
    "max_scheduler": "cosine_or_inverse_sqrt",
}
_OTHERS = ("linear_with_warmup", "inverse_sqrt_with_warmup", "constant", "constant_with_warmup")
"""OLMo's names of schedulers: those with a cosine and its shape, and the others."""


def _schedule(keys: OlmoKeys, horizon: str | None) -> schedules.Schedule:
    peak = keys.number("optimizer.learning_rate", 1e-4)
    name = keys.only("scheduler.name", *_SHAPES, *_OTHERS, default="cosine_with_warmup")
    start = keys.number("scheduler.warmup_min_lr")
    rise: dict[str, Any] = {
        "start": _share(0.1, peak) if start is None else float(start),
        "peak": float(peak),
        "warmup": _amount(keys, "scheduler.t_warmup", 100),
    }
    if name not in (*_SHAPES, "linear_with_warmup"):
        for key in ("alpha_f", "t_max"):
            keys.skip(f"scheduler.{key}", f"{name} has no end")
        if name == "constant":
            keys.skip("scheduler.t_warmup", "constant has no warm-up")
            return schedules.Constant(start=float(peak), peak=float(peak), warmup="0 steps")
        return (
            schedules.Constant(**rise)
            if name == "constant_with_warmup"
            else schedules.InverseSqrt(**rise)
        )
    end = _share(keys.number("scheduler.alpha_f", 0.1), peak)
    horizon = _amount(keys, "scheduler.t_max", None) or horizon
    if name == "linear_with_warmup":
        return schedules.Triangular(**rise, end=end, horizon=horizon)
    return schedules.WarmupCosine(**rise, end=end, horizon=horizon, shape=_SHAPES[name])


def _share(part: float, peak: float) -> float:
    """Returns the product of two numbers as they are written: 0.1 of 3e-4 is 3e-5."""
    return float(Decimal(str(part)) * Decimal(str(peak)))


def _amount(keys: OlmoKeys, key: str, default: int | None) -> Any:
    """Returns a length in the units of the scheduler."""
    units = keys.only("scheduler.units", "steps", "tokens", default="steps")
    value = keys.number(key, default)
    return None if value is None else f"{int(value)} {units}"


def _duration(keys: OlmoKeys) -> str:
    text = str(keys.take("max_duration", 10000)).strip()
    for suffix, unit in (("T", "tokens"), ("ep", "epochs"), ("", "steps")):
        if text.endswith(suffix):
            return f"{text.removesuffix(suffix).strip()} {unit}"
    raise AssertionError
