"""Records tests/golden/histories: short runs, healthy ones and ones with something wrong.

    python scripts/make_histories.py --runs=runs/histories                   # all, 40 minutes
    python scripts/make_histories.py --runs=runs/histories throttled plateau

Every history is that of a real run of a small model on the presidential messages, on two CPU cores.
Where no config gives a scenario, the data or the step is tampered with while the run goes on.
"""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.data.text.text import TrainingText
from jaxpretrain.parallel.mesh import Layout
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import resolve
from jaxpretrain.train.loop import NonFinite
from jaxpretrain.train.program import Program
from jaxpretrain.train.run import train_experiment

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "tests" / "golden" / "histories"

Overrides = dict[str, str]
Batches = Callable[[Any, np.ndarray], dict[str, np.ndarray]]

TINY: Overrides = {
    "model.d_model": "64",
    "model.num_layers": "2",
    "model.num_heads": "2",
    "model.d_ff": "192",
    "model.vocab_size": "1024",
    "model.embedding_rows": "1024",
    "data.prepare.vocab_size": "1024",
    "data.seq_len": "128",
    "optim.schedule.warmup": "40 steps",
    "train.duration": "400 steps",
    "eval.samples": "none",
    "eval.every": "50 steps",
    "eval.max_examples": "128",
    "checkpoint.every": "0",
    "monitor.every": "1",
    "monitor.signals_every": "10 steps",
    "monitor.tensorboard": "false",
}
COSINE: Overrides = {
    "optim.schedule": "warmup_cosine",
    "optim.schedule.peak": "6e-3",
    "optim.schedule.end": "1e-4",
    "optim.schedule.warmup": "40 steps",
}
STABLE: Overrides = {
    "optim.schedule": "warmup_stable_decay",
    "optim.schedule.peak": "6e-3",
    "optim.schedule.end": "0",
    "optim.schedule.warmup": "40 steps",
    "optim.schedule.decay": "100 steps",
}
KEPT = ("train/", "eval/", "perf/", "time/", "run/")
LAYERS = "/blocks"
LEFT_OUT = (
    "train/z",
    "train/perplexity",
    "perf/eta_seconds",
    "perf/mfu",
    "perf/mfu_full_attention",
)


@contextmanager
def batches(change: Batches) -> Iterator[None]:
    """Replaces the training batches `read(samples)` by `change(read, samples)`."""
    original = TrainingText.batch

    def batch(self: TrainingText, samples: np.ndarray) -> dict[str, np.ndarray]:
        return change(lambda wanted: original(self, wanted), samples)

    with mock.patch.object(TrainingText, "batch", batch):
        yield


@contextmanager
def slow_steps(first: int, seconds: float) -> Iterator[None]:
    """Makes steps longer from `first` on, without a wait for data."""
    original, calls = Layout.put, iter(range(1, 1 << 30))

    def put(self: Layout, batch: Any, batch_size: int) -> Any:
        if batch_size == 8 and next(calls) > first:
            time.sleep(seconds)
        return original(self, batch, batch_size)

    with mock.patch.object(Layout, "put", put):
        yield


@contextmanager
def damaged_layer(first: int, layer: int, factor: float) -> Iterator[None]:
    """Multiplies the weights of a layer by a factor at step `first`."""
    original = Program.compile

    def compiled(*args: Any) -> Any:
        step, calls = original(*args), iter(range(1, 1 << 30))

        def damaging(state: Any, batch: Any) -> Any:
            if next(calls) == first:
                for name in ("up", "gate", "down"):
                    part = state.params["blocks"]["0"][name]
                    part["kernel"] = part["kernel"].at[layer].multiply(factor)
            return step(state, batch)

        vars(damaging)["memory_analysis"] = step.memory_analysis
        return damaging

    with mock.patch.object(Program, "compile", compiled):
        yield


def cycled(num_samples: int) -> Batches:
    """Repeats the first samples again and again."""
    return lambda read, samples: read(samples % num_samples)


def throttled(read: Any, samples: np.ndarray) -> dict[str, np.ndarray]:
    """Reads as slowly as from a slow disk."""
    time.sleep(0.3)
    return read(samples)


def noise(read: Any, samples: np.ndarray) -> dict[str, np.ndarray]:
    """Draws tokens evenly, so that there is nothing to learn."""
    tokens = read(samples)["tokens"]
    rng = np.random.default_rng(int(samples[0]))
    return {"tokens": rng.integers(1, 1000, tokens.shape).astype(tokens.dtype)}


def noise_at(*steps: int) -> Batches:
    """Puts noise into the batches of some steps."""
    return lambda read, samples: (
        noise(read, samples) if samples[0] // 8 + 1 in steps else read(samples)
    )


def out_of_range_at(step: int) -> Batches:
    """Puts ids that are no tokens into a batch, as from a damaged file; the loss becomes NaN."""

    def change(read: Any, samples: np.ndarray) -> dict[str, np.ndarray]:
        batch = read(samples)
        return {"tokens": batch["tokens"] + 100_000} if samples[0] // 8 + 1 == step else batch

    return change


@dataclass(frozen=True)
class Scenario:
    """A run of one session or several, each with overrides of its own."""

    sessions: tuple[Overrides, ...]
    tampering: Callable[[], Any] = nullcontext


def _healthy(schedule: Overrides, seed: int, **changes: str) -> Scenario:
    return Scenario(({**schedule, "seed": str(seed), **changes},))


def _length(steps: int) -> Overrides:
    return {"train.duration": f"{steps} steps"}


PEAK, WARMUP, BATCH = "optim.schedule.peak", "optim.schedule.warmup", "train.batch_size"
HALF = COSINE | {"optim.schedule.horizon": "400 steps"} | _length(200)
WHOLE = HALF | _length(400)
FRAGILE = {"model.norm_position": "before", "model.qk_norm": "false", "optim.clip_norm": "none"}
SHARPENING = {"optim.schedule": "constant", PEAK: "2e-2", "optim.weight_decay": "0"}
LONG = {"monitor.every": "2", "eval.every": "250 steps", "eval.max_examples": "64"}
LATE_DECAY = {"optim.schedule.decay": "300 steps"}
SCHEDULES = {"triangular": {}, "cosine": COSINE, "stable": STABLE | LATE_DECAY}
# The forecast was developed on the runs called practice and judged on those called forecast.
FORECASTS: list[tuple[str, str, int, Overrides]] = [
    ("practice", "triangular", 1, _length(1500)),
    ("practice", "cosine", 1, _length(1500)),
    ("practice", "stable", 1, _length(1500)),
    ("forecast", "triangular", 1, _length(1500)),
    ("forecast", "triangular", 2, _length(1200) | {PEAK: "3e-3"}),
    ("forecast", "triangular", 3, _length(2000) | {PEAK: "1e-2"}),
    ("forecast", "cosine", 1, _length(1500)),
    ("forecast", "cosine", 2, _length(1800) | {PEAK: "3e-3"}),
    ("forecast", "cosine", 3, _length(1200) | {PEAK: "1e-2"}),
    ("forecast", "cosine", 4, _length(1500) | {WARMUP: "150 steps"}),
    ("forecast", "stable", 1, _length(1500)),
    ("forecast", "stable", 2, _length(1200) | {PEAK: "3e-3"}),
    ("forecast", "stable", 3, _length(2000) | {PEAK: "8e-3"}),
]
SCENARIOS: dict[str, Scenario] = {
    # Healthy.
    "healthy_triangular": _healthy({}, 11),
    "healthy_triangular_low": _healthy({}, 12, **{PEAK: "2e-3"}),
    "healthy_triangular_long": _healthy(_length(700), 13),
    "healthy_triangular_slow": _healthy({}, 14, **{WARMUP: "80 steps"}),
    "healthy_cosine": _healthy(COSINE, 15),
    "healthy_cosine_low": _healthy(COSINE, 16, **{PEAK: "3e-3"}),
    "healthy_cosine_long": _healthy(COSINE | _length(600), 17),
    "healthy_stable": _healthy(STABLE, 18),
    "healthy_stable_low": _healthy(STABLE, 19, **{PEAK: "3e-3"}),
    "healthy_stable_long": _healthy(STABLE | _length(600), 20),
    # Longer ones, whose final losses are predicted.
    **{
        f"{part}_{name}{number}": _healthy(LONG | SCHEDULES[name] | own, seed)
        for seed, (part, name, number, own) in enumerate(FORECASTS, start=31)
    },
    # Something is wrong.
    "rate_too_high": Scenario((FRAGILE | {PEAK: "3e-1", WARMUP: "100 steps"},)),
    "rate_too_low": Scenario(
        ({"optim.schedule.start": "1e-6", PEAK: "1e-5", "optim.schedule.end": "1e-6"},)
    ),
    "divergence": Scenario(
        (FRAGILE | {"optim.schedule": "constant", PEAK: "10", WARMUP: "300 steps"},)
    ),
    "attention_logits_growing": Scenario((FRAGILE | SHARPENING,)),
    "layer_blow_up": Scenario(
        (FRAGILE | {PEAK: "3e-3", "model.num_layers": "4"},), lambda: damaged_layer(200, 2, 4.0)
    ),
    "clipping": Scenario(({"optim.clip_norm": "0.02"},)),
    "plateau": Scenario(({},), lambda: batches(noise)),
    "frozen_data": Scenario(({},), lambda: batches(cycled(8))),
    "duplicated_data": Scenario(
        ({"train.duration": "600 steps"},), lambda: batches(cycled(40 * 8))
    ),
    "spike": Scenario(({},), lambda: batches(noise_at(200, 201, 202))),
    "bad_batch": Scenario(({},), lambda: batches(out_of_range_at(150))),
    "bad_batch_skipped": Scenario(
        ({"train.on_bad_step": "skip"},), lambda: batches(out_of_range_at(150))
    ),
    "throttled": Scenario((_length(200),), lambda: batches(throttled)),
    "slow_steps": Scenario(({},), lambda: slow_steps(250, 0.3)),
    "resumed": Scenario((HALF, WHOLE)),
    "resumed_other_batch": Scenario((HALF, WHOLE | {BATCH: "2"})),
    "resumed_other_rate": Scenario((HALF, WHOLE | {PEAK: "3e-2"})),
}


def ordered(session: Overrides) -> list[tuple[str, str]]:
    """Returns all overrides of a session; its own come last, each class before its fields."""
    return [item for item in TINY.items() if item[0] not in session] + list(session.items())


def record(name: str, scenario: Scenario, workdir: Path) -> None:
    """Runs a scenario, unless its folder is there, and writes its history."""
    if not (workdir / "done").exists():
        for session in scenario.sessions:
            config = apply_overrides(
                load_config(str(ROOT / "configs" / "olmo_nano.py")), ordered(session)
            )
            with scenario.tampering():
                try:
                    train_experiment(resolve(config), workdir, allow_config_change=True)
                except NonFinite as error:
                    print(f"{name}: {error}")
        (workdir / "done").touch()
    experiment = json.loads((workdir / "experiment.json").read_text())
    lines = read_lines(workdir / "metrics.jsonl")
    layers = read_lines(workdir / "signals.jsonl")
    found = series(lines, lines[0]["time"]) | series(layers, lines[0]["time"])
    document = {"config": experiment["config"], "series": found}
    text = json.dumps(document, separators=(",", ":"))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def series(records: list[dict[str, Any]], start: float) -> dict[str, list[list[Any]]]:
    """Returns steps, seconds since the start and values to five digits, by name."""
    columns: dict[str, list[list[Any]]] = {}
    for line in records:
        for name, value in line.items():
            if name.endswith(LAYERS) or (name.startswith(KEPT) and name not in LEFT_OUT):
                column = columns.setdefault(name, [[], [], []])
                column[0].append(line["step"])
                column[1].append(round(line["time"] - start, 2))
                column[2].append(float(f"{value:.5g}") if isinstance(value, float) else value)
    return columns


def main(argv: list[str]) -> None:
    """Records the named scenarios, or all."""
    parser = Parser(prog="python scripts/make_histories.py", description="Records short runs.")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs themselves")
    parser.add_argument("names", nargs="*", help="scenarios; none: all")
    flags = parser.parse_args(argv)
    for name in flags.names or SCENARIOS:
        if name not in SCENARIOS:
            parser.error(f"no scenario is called {name}: {', '.join(SCENARIOS)}")
        record(name, SCENARIOS[name], flags.runs / name)


if __name__ == "__main__":
    run(main)
