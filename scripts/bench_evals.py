"""What each way of saving work in task evaluation gives, on a checkpoint.

    python scripts/bench_evals.py --checkpoint=DIR --tasks=arc_easy

Every line adds one to those above it. Seconds are without compilation; CPU seconds are those of all
cores, and do not depend on what else runs.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.evals.catalogue import select
from jaxpretrain.evals.encode import Request, TextEncoder, encode_task
from jaxpretrain.evals.packing import Packed, _Row
from jaxpretrain.evals.scorer import Scorer
from jaxpretrain.train.trained import Trained, load_trained

BATCH = 32


class Unmerged(Packed):
    """Every request has a row of its own."""

    def _merge(self, requests: Any, context_length: int) -> list[_Row]:
        rows = []
        for number, request in enumerate(requests):
            query = np.array([*request.context, *request.continuation[:-1]])[-context_length:]
            size = len(request.continuation)
            positions = list(range(len(query) - size, len(query)))
            rows.append(_Row(query, positions, list(request.continuation), [number] * size))
        return rows


def by_loss(
    trained: Trained, requests: list[Request], round_to: int
) -> tuple[Callable[[], np.ndarray], int]:
    """Scores by the training loss, its head at every position; and the tokens that are run."""
    texts = [[*r.context, *r.continuation] for r in requests]

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(requests), BATCH):
            longest = max(map(len, texts[start : start + BATCH]))
            length = -(-longest // round_to) * round_to
            tokens = np.zeros((BATCH, length), np.int32)
            mask = np.zeros((BATCH, length), bool)
            for i, text in enumerate(texts[start : start + BATCH]):
                tokens[i, : len(text)] = text
                mask[i, len(requests[start + i].context) : len(text)] = True
            yield {"tokens": tokens, "mask": mask}

    loss = jax.jit(lambda params, batch: trained.model.loss(params, batch, jax.random.key(0))[2])

    def score() -> np.ndarray:
        sums = [loss(trained.params, jax.tree.map(jnp.asarray, b))["loss"] for b in batches()]
        return -np.concatenate(jax.device_get(sums))[: len(requests)]

    return score, sum(batch["tokens"].size for batch in batches())


def by_scorer(
    trained: Trained, requests: list[Request], pack: type[Packed]
) -> tuple[Callable[[], np.ndarray], int]:
    """Scores by the evaluator; and the tokens that are run."""
    scorer = Scorer(trained.model, trained.layout, trained.params, batch_tokens=BATCH * 128)
    packed = pack(requests, context_length=scorer.context_length, batch_tokens=BATCH * 128)
    for shape in packed.shapes:
        scorer._compiled[shape] = scorer._compile(shape)
    num_tokens = sum(shape.rows[0] * shape.rows[1] for _, shape in packed.batches)
    return lambda: scorer(trained.params, packed).log_likelihoods, num_tokens


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tasks", default="arc_easy")
    parser.add_argument("--limit", type=int)
    flags = parser.parse_args()
    trained = load_trained(flags.checkpoint)
    assert trained.tokenizer_path is not None
    encode = TextEncoder(trained.tokenizer_path, trained.model.input_limits()["tokens"])
    tasks = select(flags.tasks.split(",")).take(flags.limit, None).tasks
    requests = [r for task in tasks for r in encode_task(task, encode)[0]]
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].context))
    ways: dict[str, Any] = {
        "as the file has them, to multiples of 128": (by_loss, requests, 128),
        "sorted by length, to multiples of 32": (by_loss, [requests[i] for i in order], 32),
        "head where tokens are scored only": (by_scorer, requests, Unmerged),
        "queries that begin others not run": (by_scorer, requests, Packed),
    }
    for name, (way, of, option) in ways.items():
        score, num_tokens = way(trained, of, option)
        if way is by_loss:
            score()  # compiles
        start, cpu = time.perf_counter(), cpu_seconds()
        total = float(score().sum())
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        print(
            f"{name:<45}{num_tokens:>12,} tokens {cpu:>8.1f} CPU s {seconds:>8.1f} s "
            f"{len(requests) / seconds:>8,.0f} requests/s   (sum {total:.2f})",
            flush=True,
        )
    shared = {tuple(r.context) for r in requests}
    ideal = sum(map(len, shared)) + sum(len(r.continuation) - 1 for r in requests)
    print(f"{'each context once, continuations apart':<45}{ideal:>12,} tokens, without padding")


if __name__ == "__main__":
    main()
