"""Held-out loss, perplexity and bits per byte, weighted exactly.

Every example of a set counts once: the last batch is filled up with examples of weight zero, so
all batches have one shape. Sums of batches are added in float64 on the host.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.evals.contract import EvalSet, Results
from jaxpretrain.models.contract import Model
from jaxpretrain.parallel.mesh import Layout

_MAX_IN_FLIGHT = 4


class Perplexity:
    """Evaluates named sets; compiled once, for the parameters' own layout.

    Args:
      model: gives the loss.
      layout: the training mesh.
      params: shapes and shardings of the parameters.
      sets: held-out examples.
      batch_size: examples of one batch, over all devices.
      max_examples: only the first so many of each set.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        params: Any,
        sets: Sequence[EvalSet],
        *,
        batch_size: int,
        max_examples: int | None = None,
    ) -> None:
        self._layout = layout
        self._sets = sets
        self._batch_size = batch_size
        self._max_examples = max_examples
        self._step = self._compile(model, params)

    def __call__(self, params: Any) -> Results:
        """`eval/<set>/loss` in nats, `/perplexity` and `/bits_per_byte` (None: bytes unknown)."""
        scalars: dict[str, float | None] = {}
        for eval_set in self._sets:
            sums = self._sums(params, eval_set)
            loss = sums["loss"] / sums["weight"]
            scalars[f"eval/{eval_set.name}/loss"] = loss
            scalars[f"eval/{eval_set.name}/perplexity"] = math.exp(min(loss, 700.0))
            scalars[f"eval/{eval_set.name}/bits_per_byte"] = (
                sums["loss"] / math.log(2) / sums["bytes"] if sums["bytes"] else None
            )
        return Results(scalars=scalars)

    def _compile(self, model: Model, params: Any) -> Any:
        def sums(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            inputs = {name: x for name, x in batch.items() if name != "bytes"}
            _, weight, examples = model.loss(params, inputs, jax.random.key(0))
            return {
                "loss": jnp.sum(examples["loss"]),
                "weight": weight,
                "bytes": jnp.sum(batch["bytes"] * batch["weight"]),
            }

        spec = dict(model.batch_spec(self._batch_size))
        for extra in ("weight", "bytes"):
            spec[extra] = jax.ShapeDtypeStruct((self._batch_size,), jnp.float32)
        return jax.jit(sums).lower(params, self._layout.batch_spec(spec)).compile()

    def _sums(self, params: Any, eval_set: EvalSet) -> dict[str, float]:
        total = {"loss": 0.0, "weight": 0.0, "bytes": 0.0}
        in_flight: deque[dict[str, jax.Array]] = deque()

        def collect() -> None:
            for name, value in jax.device_get(in_flight.popleft()).items():
                total[name] += float(value)

        num_examples = min(eval_set.num_examples, self._max_examples or eval_set.num_examples)
        for start in range(0, num_examples, self._batch_size):
            batch = self._read(eval_set, start, num_examples)
            in_flight.append(self._step(params, self._layout.put(batch, self._batch_size)))
            if len(in_flight) > _MAX_IN_FLIGHT:
                collect()
        while in_flight:
            collect()
        return total

    def _read(self, eval_set: EvalSet, start: int, stop: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch that begins at `start`."""
        rows = start + self._layout.local_rows(self._batch_size)
        batch = eval_set.batch(np.minimum(rows, stop - 1))
        num_bytes = eval_set.target_bytes(batch)
        if num_bytes is None:
            num_bytes = np.zeros(len(rows))
        return {
            **batch,
            "weight": (rows < stop).astype(np.float32),
            "bytes": num_bytes.astype(np.float32),
        }
