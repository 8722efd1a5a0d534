"""Times the ways of saving work in task evaluation, on a checkpoint.

    python scripts/bench_evals.py --checkpoint=DIR --tasks=arc_easy

Every line adds one way to those above it. Seconds do not include compilation. CPU seconds are those
of all cores and do not depend on other programs.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.evals.scoring import packing
from jaxpretrain.evals.scoring.encode import Request, TextEncoder, encode_task
from jaxpretrain.evals.scoring.scorer import Scorer
from jaxpretrain.evals.scoring.sharing import Query, QueryGroup
from jaxpretrain.evals.tasks.catalogue import select
from jaxpretrain.train.trained import Trained, load_trained

BATCH = 32


def every_query(requests: Sequence[Request], context_length: int) -> tuple[list[Query], np.ndarray]:
    """Returns a query for each request, also where one begins another."""
    queries = []
    for number, request in enumerate(requests):
        tokens = np.array([*request.context, *request.continuation[:-1]])[-context_length:]
        size = len(request.continuation)
        positions = list(range(len(tokens) - size, len(tokens)))
        queries.append(Query(tokens, positions, list(request.continuation), [number] * size))
    return queries, np.zeros(len(requests), bool)


def share_nothing(queries: Sequence[Query]) -> tuple[list[QueryGroup], list[Query]]:
    """Returns a row for each query."""
    return [], list(queries)


def by_loss(
    trained: Trained, requests: list[Request], round_to: int
) -> tuple[Callable[[], np.ndarray], int]:
    """Returns a function that scores by the training loss, and the tokens that it runs.

    The head is computed at every position.
    """
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
    trained: Trained, requests: list[Request], **planning: Any
) -> tuple[Callable[[], np.ndarray], int]:
    """Returns a function that scores by the evaluator, and the tokens that it runs.

    `planning` replaces functions of the module `packing` by name.
    """
    scorer = Scorer(trained.model, trained.layout, trained.params, batch_tokens=BATCH * 128)
    with ExitStack() as stack:
        for name, function in planning.items():
            stack.enter_context(patch.object(packing, name, function))
        packed = scorer.prepare(requests)
    num_tokens = sum(shape.rows[0] * shape.rows[1] for _, shape in packed.batches)
    return lambda: scorer(trained.params, packed).log_likelihoods, num_tokens


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process so far, over all cores."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tasks", default="arc_easy")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way, in turn")
    flags = parser.parse_args()
    trained = load_trained(flags.checkpoint)
    assert trained.tokenizer_path is not None
    encode = TextEncoder(trained.tokenizer_path, trained.model.input_limits()["tokens"])
    tasks = select(flags.tasks.split(",")).take(flags.limit, None).tasks
    length = trained.model.units_per_example()[1]
    requests = [r for task in tasks for r in encode_task(task, encode, length)[1]]
    by_length = sorted(requests, key=lambda request: len(request.context))
    apart = {"find_queries": every_query, "share": share_nothing}
    ways = {
        "as the file has them, to multiples of 128": by_loss(trained, requests, 128),
        "sorted by length, to multiples of 32": by_loss(trained, by_length, 32),
        "head only where tokens are scored": by_scorer(trained, requests, **apart),
        "queries that begin others left out": by_scorer(trained, requests, share=share_nothing),
        "shared beginnings of queries run once": by_scorer(trained, requests),
    }
    sums = {name: float(score().sum()) for name, (score, _) in ways.items()}  # compiles too
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(flags.repeats):
        for name, (score, _) in ways.items():
            start, cpu = time.perf_counter(), cpu_seconds()
            score()
            spent[name].append((time.perf_counter() - start, cpu_seconds() - cpu))
    print(f"{len(requests):,} requests, medians of {flags.repeats}")
    for name, (_, num_tokens) in ways.items():
        seconds, cpu = np.median(spent[name], axis=0)
        print(
            f"{name:<45}{num_tokens:>10,} tokens {cpu:>7.1f} CPU s {seconds:>7.1f} s "
            f"{len(requests) / seconds:>7,.0f} requests/s {num_tokens / seconds:>8,.0f} tokens/s   "
            f"(sum {sums[name]:.2f})",
        )
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
