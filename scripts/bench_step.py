"""Times the full training step: python scripts/bench_step.py --json --d_model=512 ..."""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from jaxpretrain.data.text import TextData
from jaxpretrain.models.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.train.experiment import Experiment, Train, resolve
from jaxpretrain.train.program import make_program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name, value in dict(
        d_model=512,
        num_layers=8,
        num_heads=8,
        d_ff=0,
        seq_len=512,
        batch_size=4,
        vocab_size=8192,
        loss_chunk=512,
        steps=10,
    ).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--norm", default="layernorm")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    model = Decoder(
        vocab_size=a.vocab_size,
        embedding_rows=a.vocab_size,
        d_model=a.d_model,
        num_layers=a.num_layers,
        num_heads=a.num_heads,
        d_ff=a.d_ff or 4 * a.d_model,
        attention=a.attention,
        dtype=a.dtype,
        remat=a.remat,
        scan_layers=a.scan,
        loss_chunk=a.loss_chunk,
        norm=a.norm,
    )
    e = resolve(
        Experiment(
            model=model,
            data=TextData(seq_len=a.seq_len),
            optim=AdamW(),
            train=Train(duration=100, batch_size=a.batch_size),
        )
    )
    program = make_program(e, jax.devices())
    t = time.perf_counter()
    step = program.compile()
    compile_seconds = time.perf_counter() - t
    state = program.create_state()
    rng = np.random.default_rng(0)
    times = []
    for _ in range(a.steps + 2):
        batch = program.layout.put(
            {"tokens": rng.integers(0, a.vocab_size, (a.batch_size, a.seq_len), dtype=np.int32)},
            a.batch_size,
        )
        t = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - t)
    sec = statistics.median(times[2:])
    m = step.memory_analysis()
    flops = program.model.flops_per_example(causal=True) / a.seq_len
    print(
        json.dumps(
            dict(
                tokens_per_second=a.batch_size * a.seq_len / sec,
                step_seconds=sec,
                compile_seconds=compile_seconds,
                gflops=flops * a.batch_size * a.seq_len / sec / 1e9,
                temp_mb=m.temp_size_in_bytes / 1e6,
                loss=float(metrics["loss"]),
            )
        )
    )


main()
