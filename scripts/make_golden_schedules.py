"""Writes tests/golden/olmo_{schedules,adamw}.json: learning rates and updates of OLMo's trainer.

The first file has some 200 learning rates of every scheduler. The second has ten updates of a tiny
problem, with clipping and its warm-up. The package `ai2-olmo` computes them. It pins old versions
of many packages, so it has an environment of its own:

    python3.11 -m venv olmo
    olmo/bin/pip install --no-deps ai2-olmo==0.6.0
    olmo/bin/pip install torch==2.13.0 numpy omegaconf rich boto3 datasets cached_path \
        google-cloud-storage requests tokenizers importlib_resources
    olmo/bin/python scripts/make_golden_schedules.py --output=tests/golden

Only `olmo.optim` and `olmo.config` are used; NumPy 2 serves for these.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from olmo.config import (  # pyright: ignore[reportMissingImports]
    SchedulerConfig,
    SchedulerType,
    TrainConfig,
)
from olmo.optim import (  # pyright: ignore[reportMissingImports]
    AdamW,
    BoltOnWarmupScheduler,
    build_scheduler,
)

NUM_RATES = 180
PEAK = 3e-4
OLMO_7B = {"t_warmup": 5000, "alpha_f": 0.1}
OLMO_2 = {"t_warmup": 8_388_608_000, "t_max": 5e12, "warmup_min_lr": 0.0, "units": "tokens"}

# name: (keys of the scheduler, steps of the run, tokens of a step or None, start of a second
# warm-up and its length or None)
CASES: dict[str, tuple[dict[str, Any], int, int | None, tuple[int, int] | None]] = {
    "linear": ({"name": "linear_with_warmup", **OLMO_7B}, 476_838, None, None),
    "linear_horizon": (
        {"name": "linear_with_warmup", "t_warmup": 0, "alpha_f": 0.0, "t_max": 11_921},
        11_931,
        None,
        None,
    ),
    "cosine": ({"name": "cosine_with_warmup", "t_warmup": 2000}, 739_328, None, None),
    "cosine_tokens": ({"name": "cosine_with_warmup", **OLMO_2}, 928_646, 4_194_304, None),
    "inverse_sqrt": ({"name": "inverse_sqrt_with_warmup", "t_warmup": 2000}, 100_000, None, None),
    "max": ({"name": "max_scheduler", "t_warmup": 2000}, 100_000, None, None),
    "cosine_linear": ({"name": "cosine_linear_envelope", **OLMO_7B}, 100_000, None, None),
    "constant": ({"name": "constant"}, 1000, None, None),
    "constant_with_warmup": ({"name": "constant_with_warmup", "t_warmup": 300}, 1000, None, None),
    "bolt_on": ({"name": "cosine_with_warmup", "t_warmup": 2000}, 100_000, None, (40_000, 1000)),
}


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder tests/golden")
    output = parser.parse_args().output
    schedules = {name: learning_rates(*case) for name, case in CASES.items()}
    write(output / "olmo_schedules.json", schedules)
    write(output / "olmo_adamw.json", updates())


def learning_rates(
    keys: dict[str, Any],
    num_steps: int,
    tokens_per_step: int | None,
    bolt_on: tuple[int, int] | None,
) -> dict[str, Any]:
    """Returns steps and their learning rates, denser where the formula changes."""
    scheduler = build_scheduler(TrainConfig(), scheduler_config(keys))
    seams = [0, int(keys.get("t_warmup", 0)) // (tokens_per_step or 1), num_steps]
    if bolt_on:
        start, length = bolt_on
        scheduler = BoltOnWarmupScheduler.wrap(scheduler, start, start + length)
        seams += [start, start + length]
    around = {s + offset for s in seams for offset in (-2, -1, 0, 1, 2)}
    spread = {1 + round(i * (num_steps - 1) / (NUM_RATES - 1)) for i in range(NUM_RATES)}
    steps = sorted(s for s in around | spread if s >= 1)
    # The schedule sees the step after it was counted, or the tokens with those of its batch.
    unit = tokens_per_step or 1
    rates = [scheduler.get_lr(PEAK, s * unit, num_steps * unit) for s in steps]
    return {"steps": steps, "rates": [float(f"{rate:.9g}") for rate in rates]}


def updates(num_updates: int = 10) -> dict[str, Any]:
    """Updates in the trainer's order: clip, look up learning rate and threshold, update."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"kernel": (3, 4), "embedding": (5, 3), "scale": (4,)}
    draw = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    params = {name: torch.nn.Parameter(value.clone()) for name, value in draw.items()}
    clipped = {"max_grad_norm": 1.0, "max_grad_norm_ratio": None, "sharded": False}
    groups = [
        {"params": [params[name] for name in names], "param_names": names, **decay, **clipped}
        for names, decay in ((["kernel"], {}), (["embedding", "scale"], {"weight_decay": 0.0}))
    ]
    optimizer = AdamW(groups, lr=0.1, betas=(0.9, 0.95), weight_decay=0.1, eps=1e-5)
    keys = {"name": "linear_with_warmup", "t_warmup": 4, "alpha_f": 0.1}
    keys |= {"grad_clip_warmup_steps": 5, "grad_clip_warmup_factor": 3.0}
    scheduler = build_scheduler(TrainConfig(), scheduler_config(keys))
    result: dict[str, Any] = {"params": as_lists(params), "gradients": [], "updated": []}
    for step in range(1, num_updates + 1):
        for name, param in params.items():
            param.grad = 2.0 * torch.randn(shapes[name], generator=generator)
        result["gradients"].append({name: as_list(p.grad) for name, p in params.items()})
        optimizer.clip_grads_and_collect_metrics(step, collect_param_metrics=False)
        for group in optimizer.param_groups:
            group["lr"] = scheduler.get_lr(0.1, step, num_updates)
            group["max_grad_norm"] = scheduler.get_max_grad_norm(1.0, step, num_updates)
        optimizer.step()
        result["updated"].append(as_lists(params))
    return result


def scheduler_config(keys: dict[str, Any]) -> SchedulerConfig:
    """Returns the config of a scheduler."""
    return SchedulerConfig(**{**keys, "name": SchedulerType(keys["name"])})


def as_lists(params: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
    """Returns each parameter as nested lists."""
    return {name: as_list(param) for name, param in params.items()}


def as_list(tensor: torch.Tensor | None) -> Any:
    """Returns a tensor as nested lists."""
    assert tensor is not None
    return tensor.tolist()


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
