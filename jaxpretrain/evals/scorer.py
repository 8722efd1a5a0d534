"""Log-likelihoods of continuations, over the mesh that holds the parameters.

Nothing is known here of tasks: this serves multiple choice, perplexity of files, and whatever asks
for log p(continuation | context).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.encode import Request
from jaxpretrain.evals.next_tokens import next_token_scores
from jaxpretrain.evals.packing import Batch, Packed, Shape
from jaxpretrain.models.contract import LanguageModel, Model
from jaxpretrain.parallel.mesh import Layout

_MAX_IN_FLIGHT = 4


@dataclass(frozen=True)
class Scores:
    """Of requests, in their order."""

    log_likelihoods: np.ndarray  # float64 [n], nats
    is_greedy: np.ndarray  # bool [n]: each token of the continuation is the likeliest


class Scorer:
    """Scores requests with any parameters of one model; compiled once for each shape of batches.

    Args:
      model: a language model; its sequence length is the context.
      layout: the mesh that its parameters lie on; rows of batches are divided over it.
      params: abstract parameters with their shardings.
      batch_tokens: tokens of one batch, over all devices.

    Raises:
      InputError: the model predicts no tokens.
    """

    def __init__(self, model: Model, layout: Layout, params: Any, *, batch_tokens: int) -> None:
        if not isinstance(model, LanguageModel):
            raise InputError("this model predicts no tokens, so it cannot be evaluated on tasks")
        self.context_length = model.units_per_example()[1]
        self.vocab_size = model.input_limits()["tokens"]
        self._model = model
        self._layout = layout
        self._params = params
        self._batch_tokens = batch_tokens
        self._compiled: dict[Shape, Any] = {}

    def prepare(self, requests: Sequence[Request]) -> Packed:
        """Plans the batches and compiles what they need.

        Raises:
          InputError: a continuation alone is longer than the context.
        """
        packed = Packed(
            requests,
            context_length=self.context_length,
            batch_tokens=self._batch_tokens,
            num_data=self._layout.num_data,
        )
        for shape in packed.shapes - self._compiled.keys():
            self._compiled[shape] = self._compile(shape)
        return packed

    def __call__(self, params: Any, packed: Packed) -> Scores:
        """Scores what `prepare` planned. The parameters are neither copied nor changed."""
        log_likelihoods = np.zeros(packed.num_requests)
        is_greedy = np.ones(packed.num_requests, bool)
        in_flight: deque[tuple[Batch, Any]] = deque()

        def collect() -> None:
            batch, outputs = in_flight.popleft()
            log_probs, likeliest = jax.device_get(outputs)
            used = batch.owners >= 0
            np.add.at(log_likelihoods, batch.owners[used], log_probs[used].astype(np.float64))
            np.logical_and.at(is_greedy, batch.owners[used], likeliest[used])

        for batch, (_, shape) in zip(packed, packed.batches, strict=True):
            rows = {"tokens": batch.tokens}
            groups = {"places": batch.places, "targets": batch.targets}
            arrays = self._put(rows, shape.rows[0]) | self._put(groups, shape.places[0])
            in_flight.append((batch, self._compiled[shape](params, arrays)))
            if len(in_flight) > _MAX_IN_FLIGHT:
                collect()
        while in_flight:
            collect()
        return Scores(log_likelihoods, is_greedy)

    def _put(self, arrays: dict[str, np.ndarray], num_rows: int) -> dict[str, jax.Array]:
        mine = self._layout.local_rows(num_rows)
        return self._layout.put({name: a[mine] for name, a in arrays.items()}, num_rows)

    def _compile(self, shape: Shape) -> Any:
        def scores(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            arrays = (batch["tokens"], batch["places"], batch["targets"])
            return next_token_scores(self._model, params, *arrays)

        spec = {
            "tokens": jax.ShapeDtypeStruct(shape.rows, jnp.int32),
            "places": jax.ShapeDtypeStruct(shape.places, jnp.int32),
            "targets": jax.ShapeDtypeStruct(shape.places, jnp.int32),
        }
        # Every process gets all scores: each computes the same metrics.
        program = jax.jit(scores, out_shardings=self._layout.replicated)
        return program.lower(self._params, self._layout.batch_spec(spec)).compile()
