"""Times the signals of layers.

    python scripts/bench_signals.py --config=configs/olmo_nano.py

Two programs run in turns, in both orders, so that other work slows both alike: the training step,
and the same step with global norms only, as Optax computes them. The probe and the transfer of all
signals, which happen every `monitor.signals_every` steps, are timed too. The compiler's count of
memory traffic has no noise. Prints medians as one JSON document.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from jaxpretrain.config.command import Parser, run, split_overrides
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.devices.startup import use_huge_pages


class Times:
    """Collects seconds by name."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Times the block inside the `with`."""
        start = time.perf_counter()
        yield
        self.taken[name].append(time.perf_counter() - start)

    def all(self, name: str) -> np.ndarray:
        """Returns the times of a name without the first one, which warms up."""
        return np.array(self.taken[name][1:])


def main(argv: list[str]) -> None:
    """Prints the times, and the share of the step time that signals take."""
    rest, overrides = split_overrides(argv)
    parser = Parser(prog="python scripts/bench_signals.py", description="Times signals.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--rounds", type=int, default=60, help="steps of each program")
    flags = parser.parse_args(rest)

    import jax

    from jaxpretrain.train.experiment import resolve
    from jaxpretrain.train.program import make_program

    experiment = resolve(apply_overrides(load_config(flags.config), overrides))
    program = make_program(experiment, jax.devices())
    batch, times = random_batch(program), Times()
    steps = {"with": program.compile(), "without": compile_without(program)}
    states = {name: program.create_state() for name in steps}
    probe, signals = program.compile_probe(), {}
    for turn in range(flags.rounds + 1):
        for name in sorted(steps, reverse=turn % 2 == 0):
            with times.of(name):
                states[name], metrics = jax.block_until_ready(steps[name](states[name], batch))
            signals |= metrics.get("signals", {})
        with times.of("probe"):
            seen = jax.block_until_ready(probe(states["with"].params, batch))
        with times.of("fetch"):
            jax.device_get((signals, seen))
    report: dict[str, Any] = {
        f"{name}_seconds": float(np.median(times.all(name))) for name in times.taken
    }
    parts = times.all("with") / times.all("without") - 1
    report["norms_part"] = float(np.median(parts))
    report["norms_part_error"] = float(1.25 * np.std(parts) / len(parts) ** 0.5)
    traffic = {name: step.cost_analysis()["bytes accessed"] for name, step in steps.items()}
    report["norms_part_of_traffic"] = traffic["with"] / traffic["without"] - 1
    if every := experiment.timeline.signals_every:
        rare = report["probe_seconds"] + report["fetch_seconds"]
        report["probe_part"] = rare / every / report["without_seconds"]
    report |= {"signals_every": every, "device": jax.devices()[0].device_kind}
    print(json.dumps(report, indent=2))


def random_batch(program: Any) -> Any:
    """Returns a batch of noise on the devices."""
    rng = np.random.default_rng(0)
    limits = program.model.input_limits()
    batch = {
        name: rng.integers(limits.get(name, 2), size=spec.shape).astype(spec.dtype)
        for name, spec in program.batch.items()
    }
    return program.layout.put(batch, program.experiment.train.batch_size)


def compile_without(program: Any) -> Any:
    """Compiles the step with global norms only."""
    import optax

    def whole(grads: Any, updates: Any, params: Any) -> dict[str, Any]:
        trees = {"grad_norm": grads, "update_norm": updates, "param_norm": params}
        return {name: optax.global_norm(tree) for name, tree in trees.items()}

    with (
        mock.patch("jaxpretrain.train.step._norms", whole),
        mock.patch("jaxpretrain.optim.layers.global_norm", optax.global_norm),
    ):
        return program.compile()


if __name__ == "__main__":
    use_huge_pages()
    run(main)
