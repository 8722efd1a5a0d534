"""Times the full training step: forward, backward, clipping and AdamW, without compilation.

python scripts/bench_step.py --json --d_model=512 --num_layers=8 --num_heads=8 --seq_len=512 \
    --batch_size=4 --vocab_size=8192 --reference=hf

The program is the one that trains. With `--reference=hf`, Hugging Face's OlmoForCausalLM of the
same sizes runs in PyTorch, in a process of its own. Both take turns, so that other work slows both
alike. The reference needs torch and transformers.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

from jaxpretrain.config.command import Parser, run
from jaxpretrain.devices.startup import use_huge_pages

SIZES = {
    "d_model": 512,
    "num_layers": 8,
    "num_heads": 8,
    "seq_len": 512,
    "batch_size": 4,
    "vocab_size": 8192,
}


def main(argv: list[str]) -> None:
    """Prints one JSON document, or a table."""
    flags = parse(argv)
    dtypes = flags.dtypes.split(",")
    turns = {dtype: Ours(flags, dtype) for dtype in dtypes}
    theirs = {dtype: Theirs(flags, dtype) for dtype in dtypes} if flags.reference else {}
    for _ in range(flags.rounds):
        for dtype in dtypes:
            turns[dtype].take(flags.steps)
            if theirs:
                theirs[dtype].take(flags.steps)
    report = next(iter(turns.values())).facts()
    report["results"] = {dtype: turn.result() for dtype, turn in turns.items()}
    if theirs:
        report["reference"] = {dtype: turn.result() for dtype, turn in theirs.items()}
        report |= ratios(report["results"], report["reference"])
    print(json.dumps(report, indent=None if flags.json else 2))


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the flags; a variant sets the model's sizes."""
    parser = Parser(prog="python scripts/bench_step.py", description=__doc__)
    parser.add_argument("--variant", help="a published size, such as olmo2_1b, instead of sizes")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--d_ff", type=int, help="by default 4 d_model")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--scan_layers", action="store_true")
    parser.add_argument("--microbatch_size", type=int)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each")
    parser.add_argument("--reference", choices=["hf"])
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser.parse_args(argv)


class Turns:
    """Collects step times over several turns; the first step of each warms up and is left out."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.seconds: list[float] = []

    def result(self) -> dict[str, Any]:
        """Returns the median time of a step and the rate."""
        median = statistics.median(self.seconds)
        return {
            "step_seconds": median,
            "step_seconds_min": min(self.seconds),
            "tokens_per_second": self.tokens_per_step / median,
        }


class Ours(Turns):
    """Times the training step of this package."""

    def __init__(self, flags: argparse.Namespace, dtype: str) -> None:
        import jax
        import numpy as np

        super().__init__(flags.batch_size * flags.seq_len)
        self.dtype = dtype
        self.program = make_program(flags, dtype)
        start = time.perf_counter()
        self.step = self.program.compile()
        self.compile_seconds = time.perf_counter() - start
        self.state = self.program.create_state()
        rng = np.random.default_rng(0)
        limit = self.program.model.input_limits()["tokens"]
        tokens = rng.integers(limit, size=(flags.batch_size, flags.seq_len), dtype=np.int32)
        self.batch = self.program.layout.put({"tokens": tokens}, flags.batch_size)
        self.jax = jax

    def take(self, num_steps: int) -> None:
        """Runs a turn."""
        for number in range(num_steps + 1):
            start = time.perf_counter()
            self.state, _ = self.jax.block_until_ready(self.step(self.state, self.batch))
            if number:
                self.seconds.append(time.perf_counter() - start)

    def facts(self) -> dict[str, Any]:
        """Returns the facts that do not depend on the dtype."""
        model, jax = self.program.model, self.jax
        _, seq_len = model.units_per_example()
        device = jax.devices()[0]
        return {
            "device": f"{jax.device_count()} x {device.device_kind}",
            "jax": jax.__version__,
            "params": sum(p.size for p in jax.tree.leaves(self.program.state.params)),
            "flops_per_token": model.flops_per_example(causal=True) / seq_len,
            "flops_per_token_full_attention": model.flops_per_example(causal=False) / seq_len,
            "model": model.describe(),
        }

    def result(self) -> dict[str, Any]:
        """Returns rates, memory by compiler and device, and the MFU where the peak is known."""
        from jaxpretrain.devices.chips import peak_flops
        from jaxpretrain.devices.memory import memory_in_use

        result = super().result()
        device = self.jax.devices()[0]
        memory = self.step.memory_analysis()
        in_use = memory_in_use(device)
        peak = peak_flops(device.device_kind, self.dtype)
        flops = self.facts()["flops_per_token"] * result["tokens_per_second"]
        return {
            **result,
            "compile_seconds": self.compile_seconds,
            "mfu": None if peak is None else flops / (peak * self.jax.device_count()),
            "flops_per_second": flops,
            "peak_memory_bytes": in_use["peak_bytes_in_use"] if in_use else None,
            "compiled_memory_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        }


class Theirs(Turns):
    """Hugging Face's model in PyTorch, timed by `bench_reference.py` in its own process."""

    def __init__(self, flags: argparse.Namespace, dtype: str) -> None:
        super().__init__(flags.batch_size * flags.seq_len)
        sizes = {name: getattr(flags, name) for name in SIZES}
        sizes["d_ff"] = flags.d_ff or 4 * flags.d_model
        script = Path(__file__).with_name("bench_reference.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps({**sizes, "dtype": dtype})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def take(self, num_steps: int) -> None:
        """Lets the other process run a turn."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{num_steps}\n")
        self.process.stdin.flush()
        self.seconds += json.loads(self.process.stdout.readline())

    def result(self) -> dict[str, Any]:
        """Ends the process and returns the rates."""
        self.process.communicate()
        return super().result()


def make_program(flags: argparse.Namespace, dtype: str) -> Any:
    """Returns the program that training would run."""
    import jax

    from jaxpretrain.data.text.text import TextData
    from jaxpretrain.models.olmo.decoder import Decoder
    from jaxpretrain.models.olmo.variants import OLMO_SIZES
    from jaxpretrain.optim.optimizers import AdamW
    from jaxpretrain.train import experiment, program

    sizes: dict[str, Any] = {
        "vocab_size": flags.vocab_size,
        "embedding_rows": flags.vocab_size,
        "d_model": flags.d_model,
        "num_layers": flags.num_layers,
        "num_heads": flags.num_heads,
        "d_ff": flags.d_ff or 4 * flags.d_model,
    }
    model = OLMO_SIZES[flags.variant] if flags.variant else Decoder(**sizes)
    choices: dict[str, Any] = {
        "dtype": dtype,
        "attention": flags.attention,
        "remat": flags.remat,
        "scan_layers": flags.scan_layers,
    }
    config = experiment.Experiment(
        model=dataclasses.replace(model, **choices),
        data=TextData(seq_len=flags.seq_len),
        optim=AdamW(),
        train=experiment.Train(
            duration=10_000, batch_size=flags.batch_size, microbatch_size=flags.microbatch_size
        ),
    )
    return program.make_program(experiment.resolve(config), jax.devices())


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Returns our rate over theirs, for the best dtypes and for float32."""
    rate = itemgetter("tokens_per_second")
    found = {"ratio_best": max(map(rate, ours.values())) / max(map(rate, theirs.values()))}
    if "float32" in ours:
        found["ratio_fp32"] = rate(ours["float32"]) / rate(theirs["float32"])
    return found


if __name__ == "__main__":
    use_huge_pages()  # as training does; the reference's process inherits it
    run(main)
