"""Times generation with the cache, and with the whole window computed for each token.

    python scripts/bench_generate.py --variant=olmo_20m --num_prompts=4 --num_tokens=128

Weights are random, and each token is the likeliest one. Both ways run in turn. Medians are printed
as one JSON document; they do not include compilation. CPU seconds are those of all cores, and other
programs change them little.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.evals.generation.token_loop import Rows, Sampling, TokenLoop
from jaxpretrain.models.contract import LanguageModel
from jaxpretrain.models.olmo.variants import OLMO_SIZES
from jaxpretrain.parallel.mesh import Layout, Mesh


def with_cache(
    model: LanguageModel, layout: Layout, params: Any, prompts: np.ndarray, length: int
) -> Callable[[int], None]:
    """Returns a function that generates a number of tokens, all texts at once, on the device."""
    num_rows, num_read = prompts.shape
    rows = Rows(
        prompts_bt=prompts,
        lengths_b=np.full(num_rows, num_read, np.int32),
        ends_b=np.full(num_rows, length, np.int32),
        numbers_b=np.arange(num_rows, dtype=np.int32),
        seed=np.uint32(0),
    )
    loop = TokenLoop(model, layout, Sampling(temperature=0), model.input_limits()["tokens"], [])

    def run(num_tokens: int) -> None:
        state = loop.begin(params, rows, length)
        state = loop.go_on(params, rows, state, np.zeros(num_rows, bool), num_tokens - 1)
        state.tokens_bs.block_until_ready()

    return run


def with_whole_windows(
    model: LanguageModel, params: Any, prompts: np.ndarray, context: int
) -> Callable[[int], None]:
    """Returns a function that generates a number of tokens text by text, each on the host."""
    vocab_size = model.input_limits()["tokens"]

    @jax.jit
    def next_token(params: Any, window: jax.Array, position: jax.Array) -> jax.Array:
        return jnp.argmax(model.logits(params, window)[0, position - 1, :vocab_size])

    def run(num_tokens: int) -> None:
        for prompt in prompts:
            window = np.zeros((1, context), np.int32)
            window[0, : len(prompt)] = prompt
            for position in range(len(prompt), len(prompt) + num_tokens):
                window[0, position] = int(next_token(params, window, np.int32(position)))

    return run


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description="Tokens per second of generation, two ways.")
    parser.add_argument("--variant", default="olmo_20m", choices=sorted(OLMO_SIZES))
    parser.add_argument("--context", type=int, default=1024, help="the model's sequence length")
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--num_prompts", type=int, default=4)
    parser.add_argument("--num_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()

    layout = Layout(Mesh().build(jax.devices()[:1]))
    platform = jax.devices()[0].platform
    model: Any = OLMO_SIZES[flags.variant].build(
        {"tokens": ((flags.context,), "int32")}, platform=platform
    )
    params = jax.jit(model.init)(jax.random.key(0))
    size = (flags.num_prompts, flags.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, 1000, size, np.int32)
    ways = {
        "cache": with_cache(model, layout, params, prompts, flags.prompt_tokens + flags.num_tokens),
        "whole_windows": with_whole_windows(model, params, prompts, flags.context),
    }
    for run in ways.values():
        run(2)  # compiles
    clocks = {"wall_seconds": time.perf_counter, "cpu_seconds": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {c: {name: [] for name in ways} for c in clocks}
    for _ in range(flags.repeats):
        for name, run in ways.items():
            begin = {c: now() for c, now in clocks.items()}
            run(flags.num_tokens)
            for c, now in clocks.items():
                taken[c][name].append(now() - begin[c])
    medians = {
        c: {name: statistics.median(times) for name, times in by_way.items()}
        for c, by_way in taken.items()
    }
    num_drawn = flags.num_prompts * flags.num_tokens
    seconds = medians["wall_seconds"]
    document = {
        **vars(flags),
        "device": jax.devices()[0].device_kind,
        "load": os.getloadavg()[0],
        **medians,
        "tokens_per_second": {name: num_drawn / seconds[name] for name in ways},
        "times_as_fast": seconds["whole_windows"] / seconds["cache"],
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
