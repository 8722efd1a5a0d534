"""Writes tests/golden/olmo_{models,training}.npz: results of transformers and of OLMo's trainer.

Outputs of tiny models, layer by layer, and runs of the trainer: its data loader, train step, AdamW
and schedulers, from its YAML to the updated weights. Weights and tokens are drawn by NumPy, so that
tests draw the same. All is float32, on the CPU.

    python3.11 -m venv parity
    parity/bin/pip install -e '.[dev]' torch==2.13.0 transformers==5.23.0 \
        omegaconf cached_path wandb torchmetrics datasets importlib_resources
    parity/bin/pip install --no-deps ai2-olmo==0.6.0  # it pins old versions, and runs with new ones
    parity/bin/python scripts/make_golden_olmo.py
"""

import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
Arrays = dict[str, np.ndarray]

# --- what is computed: configs of transformers, `model` groups of OLMo's YAML, runs of its trainer

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 96,
    "tie_word_embeddings": False,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
}
_OLMO = _SIZES | {"architectures": ["OlmoForCausalLM"], "model_type": "olmo"}
_OLMO_2 = _SIZES | {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e5,
}
_OLMO_3 = _OLMO_2 | {
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "sliding_window": 8,
}
_LLAMA = _OLMO_2 | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "hf_olmo": _OLMO | {"clip_qkv": 1.0},
    "hf_olmo_tied": _OLMO | {"clip_qkv": 1.0, "tie_word_embeddings": True},
    "hf_olmo2": _OLMO_2,
    "hf_olmo2_tied": _OLMO_2 | {"tie_word_embeddings": True},
    "hf_olmo2_grouped": _OLMO_2 | {"num_key_value_heads": 2},
    "hf_olmo3": _OLMO_3 | {"num_key_value_heads": 2},
    "hf_olmo3_yarn": _OLMO_3 | {"rope_scaling": _YARN},
    "hf_ladder": _LLAMA,
}
"""The config.json of each model."""

_NATIVE = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 3,
    "mlp_hidden_size": 96,
    "rope": True,
    "include_bias": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "max_sequence_length": 24,
    "vocab_size": 90,
    "embedding_size": 96,
    "init_device": "cpu",
}
_NATIVE_RMS = _NATIVE | {
    "layer_norm_type": "rms",
    "layer_norm_eps": 1e-6,
    "weight_tying": False,
    "init_cutoff_factor": 3.0,
}
NATIVE: dict[str, dict[str, Any]] = {
    "olmo_1": _NATIVE | {"layer_norm_with_affine": False, "clip_qkv": 1.0, "init_fn": "mitchell"},
    "olmo_2": _NATIVE_RMS
    | {"n_kv_heads": 2, "rope_theta": 500_000, "attention_layer_norm": True, "norm_after": True},
    "ladder": _NATIVE_RMS,
}
"""The `model` of OLMo's YAML for each model."""


@dataclass(frozen=True)
class Run:
    """A run of OLMo's trainer on drawn tokens."""

    settings: dict[str, Any]
    """The run's YAML without the paths of the data."""
    std: float
    """The standard deviation of the initial weights."""
    num_sequences: int
    """The sequences of its token files, which make up an epoch."""
    kept: tuple[str, ...] = field(default=("parameters",))
    """The parts of the final state that are kept, besides the records of the steps."""


_SINGLE = {"precision": "fp32", "distributed_strategy": None}
_OLMO_1_RECIPE = _SINGLE | {
    # Silent on epsilon and decay, as the YAMLs of OLMo 1 are.
    "optimizer": {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1},
    "scheduler": {
        "name": "linear_with_warmup",
        "t_warmup": 4,
        "alpha_f": 0.1,
        "grad_clip_warmup_steps": 4,
        "grad_clip_warmup_factor": 5.0,
    },
    "max_grad_norm": 0.5,
    "max_duration": 10,
    "global_train_batch_size": 4,
    "device_train_microbatch_size": 4,
    "data": {"drop_last": True},
}
_OLMO_2_RECIPE = _SINGLE | {
    "optimizer": {
        "name": "adamw",
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "eps": 1e-8,
        "decay_norm_and_bias": True,
        "decay_embeddings": False,
    },
    "scheduler": {
        "name": "cosine_with_warmup",
        "units": "tokens",
        "t_warmup": 4 * 4 * 24,
        "t_max": 20 * 4 * 24,
        "alpha_f": 0.1,
        "warmup_min_lr": 0.0,
    },
    "softmax_auxiliary_loss": True,
    "auxiliary_loss_multiplier": 1e-5,
    "max_grad_norm": 1.0,
    "max_duration": 10,
    "global_train_batch_size": 4,
    "device_train_microbatch_size": 2,
    "data": {
        "drop_last": True,
        "instance_filter": {
            "repetition_max_period": 3,
            "repetition_min_period": 1,
            "repetition_max_count": 6,
        },
    },
}
RUNS: dict[str, Run] = {
    "olmo_1": Run(_OLMO_1_RECIPE | {"model": NATIVE["olmo_1"]}, std=0.1, num_sequences=27),
    "olmo_2": Run(_OLMO_2_RECIPE | {"model": NATIVE["olmo_2"]}, std=0.1, num_sequences=27),
    # The layers of OLMo's ladder at 20M, in OLMo 2's way. The vocabulary is cut to what makes it
    # twenty million parameters in all.
    "curve": Run(
        _OLMO_2_RECIPE
        | {
            "model": NATIVE["olmo_2"]
            | {
                "d_model": 256,
                "n_heads": 8,
                "n_kv_heads": 8,
                "n_layers": 8,
                "mlp_hidden_size": 2048,
                "max_sequence_length": 64,
                "vocab_size": 22_600,
                "embedding_size": 22_656,
            },
            "optimizer": _OLMO_2_RECIPE["optimizer"] | {"learning_rate": 2e-3},
            "scheduler": _OLMO_2_RECIPE["scheduler"]
            | {"t_warmup": 5 * 8 * 64, "t_max": 40 * 8 * 64},
            "max_duration": 20,
            "global_train_batch_size": 8,
            "device_train_microbatch_size": 8,
        },
        std=0.02,
        num_sequences=109,
        kept=(),
    ),
}
"""The runs by name; each goes on into a second epoch."""

# --- random weights and tokens; the tests draw the same ones


def draw_weights(shapes: Mapping[str, tuple[int, ...]], std: float = 0.25) -> Arrays:
    """Draws float32 weights, each by its name: normal, and around 1 for norms."""
    weights = {}
    for name, shape in shapes.items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        weights[name] = 1 + np.float32(0.1) * noise if len(shape) == 1 else np.float32(std) * noise
    return weights


def draw_tokens(num_sequences: int, length: int, num_ids: int) -> np.ndarray:
    """Draws tokens, int64 [n, t]: low ids are more likely, and a sixth of the rows repeat."""
    random = np.random.default_rng(num_ids)
    tokens = (num_ids * random.random((num_sequences, length)) ** 4).astype(np.int64)
    for number, row in enumerate(tokens[::6]):
        row[:] = np.resize(row[: 1 + number % 3], length)
    return tokens


def write_run(name: str, folder: Path) -> Path:
    """Writes the YAML of a run beside its token files."""
    import yaml

    run = RUNS[name]
    model = run.settings["model"]
    length = model["max_sequence_length"]
    tokens = draw_tokens(run.num_sequences, length, model["vocab_size"]).astype(np.uint16)
    paths = []
    for number, rows in enumerate(np.split(tokens, [run.num_sequences // 2])):
        paths.append(f"tokens{number}.npy")
        remainder = rows[0, : length // 2]  # of a file is never read
        np.concatenate([rows.ravel(), remainder]).tofile(folder / paths[-1])
    settings = run.settings | {"data": run.settings["data"] | {"paths": paths}}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


def model_tokens() -> np.ndarray:
    """Returns the input of the models, int64 [2, 24]."""
    return np.random.default_rng(0).integers(90, size=(2, 24))


# --- what comes out


def read(kind: str, name: str) -> Arrays:
    """Returns the kept arrays of a model ("models") or a run ("training")."""
    with np.load(GOLDEN / f"olmo_{kind}.npz") as kept:
        mine = [key for key in kept if key.startswith(f"{name}/")]
        return {key.removeprefix(f"{name}/"): kept[key] for key in mine}


def compute(kind: str, name: str) -> Arrays:
    """Computes the same arrays anew."""
    if kind == "training":
        return train(name)
    return of_transformers(name) if name in TRANSFORMERS else of_olmo(name)


def of_transformers(name: str) -> Arrays:
    """Computes the outputs of a model of transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TRANSFORMERS[name]))
    return outputs(model, model.model.layers)


def of_olmo(name: str) -> Arrays:
    """Computes the outputs of a model of OLMo's trainer."""
    from olmo.config import ModelConfig  # pyright: ignore[reportMissingImports]
    from olmo.model import OLMo  # pyright: ignore[reportMissingImports]

    model = OLMo(ModelConfig.new(**NATIVE[name]))
    return outputs(model, model.transformer.blocks)


def outputs(model: Any, blocks: Any) -> Arrays:
    """Returns the residual stream after each layer [layers, b, t, d] and the logits [b, t, v]."""
    import torch

    set_weights(model, 0.25)
    layers = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        layers.append((output[0] if isinstance(output, tuple) else output).numpy())

    for block in blocks:
        block.register_forward_hook(keep)
    with torch.no_grad():
        logits = model.eval()(torch.tensor(model_tokens())).logits.numpy()
    return {"layers": np.stack(layers), "logits": logits}


def set_weights(model: Any, std: float) -> None:
    """Gives a model of torch the drawn weights."""
    import torch

    parameters = dict(model.named_parameters())
    drawn = draw_weights({name: tuple(p.shape) for name, p in parameters.items()}, std)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(drawn[name]))


def train(name: str) -> Arrays:
    """Trains a run; returns the records of each step and the updated weights."""
    import torch
    from olmo.config import TrainConfig  # pyright: ignore[reportMissingImports]
    from olmo.data import build_train_dataloader  # pyright: ignore[reportMissingImports]
    from olmo.model import OLMo  # pyright: ignore[reportMissingImports]
    from olmo.optim import build_optimizer, build_scheduler  # pyright: ignore[reportMissingImports]
    from olmo.train import Trainer  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig.load(write_run(name, Path(folder)))
        config.data.paths = [f"{folder}/{path}" for path in config.data.paths]
        config.save_folder = folder
        config.device_train_batch_size = config.global_train_batch_size
        model = OLMo(config.model)
        set_weights(model, RUNS[name].std)
        model.process_group = None  # as that of a model without FSDP
        trainer = Trainer(
            cfg=config,
            model=model,
            dist_model=model,
            optim=build_optimizer(config, model),
            scheduler=build_scheduler(config),
            train_loader=build_train_dataloader(config),
            device=torch.device("cpu"),
            evaluators=[],
        )
        batches = islice(epochs(trainer), config.max_duration)
        records = [step(trainer, batch) for batch in batches]
    result = {key: np.array([record[key] for record in records]) for key in records[0]}
    if "parameters" in RUNS[name].kept:
        named = model.named_parameters()
        result |= {f"parameters/{name}": p.detach().numpy() for name, p in named}
    return result


def epochs(trainer: Any) -> Iterator[dict[str, Any]]:
    """Yields the batches of all epochs."""
    for epoch in count():
        trainer.dataset.reshuffle(epoch)
        yield from trainer.train_loader


def step(trainer: Any, batch: dict[str, Any]) -> dict[str, float]:
    """Takes a step and counts it in the way of `Trainer.fit`."""
    trainer.global_step += 1
    trainer.global_train_examples_seen_this_epoch += len(batch["input_ids"])
    trainer.global_train_tokens_seen += batch["input_ids"].numel()
    metrics = trainer.train_step(batch, reduce_global_loss=False)
    return {
        "loss": metrics["train/CrossEntropyLoss"],
        "z_loss": metrics.get("train/ZLoss", 0.0),
        "grad_norm": metrics["optim/total_grad_norm"],
        "learning_rate": trainer.optim.param_groups[0]["lr"],
    }


def main() -> None:
    """Computes all arrays and writes both files."""
    for kind, names in {"models": (*TRANSFORMERS, *NATIVE), "training": tuple(RUNS)}.items():
        arrays: dict[str, Any] = {}
        for name in names:
            found = compute(kind, name)
            arrays |= {f"{name}/{key}": array for key, array in found.items()}
            print(kind, name, found.get("loss", ""), flush=True)
        path = GOLDEN / f"olmo_{kind}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
