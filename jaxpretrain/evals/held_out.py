"""Held-out loss, and for language models perplexity and bits per byte, weighted exactly.

Every example of a set counts once: the last batch is filled up with examples of weight zero, so
all batches have one shape. Sums of batches are added in float64 on the host.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.contract import EvalSet
from jaxpretrain.diagnosis.metric_names import bits_per_byte, perplexity
from jaxpretrain.evals.contract import Evaluator, Results, Setting
from jaxpretrain.evals.scoring.scorer import read_back
from jaxpretrain.models.contract import LanguageModel, Params


class HeldOut(Evaluator):
    """Evaluates the held-out sets of the setting, or the first `max_examples` of each."""

    def __init__(self, setting: Setting, *, max_examples: int | None = None) -> None:
        self._setting = setting
        self._layout = setting.layout
        self._batch_size = setting.batch_size
        self._max_examples = max_examples
        self._is_language_model = isinstance(setting.model, LanguageModel)

    def compile(self) -> None:
        """Compiles the sums of a batch, for the layout of the parameters."""
        model = self._setting.model

        def sums(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            inputs = {name: x for name, x in batch.items() if name != "bytes"}
            _, _, examples = model.loss(params, inputs, jax.random.key(0))
            losses = {name: jnp.sum(x) for name, x in examples.items() if name[:4] == "loss"}
            return losses | {
                "weight": jnp.sum(examples["weight"]),
                "bytes": jnp.sum(batch["bytes"] * batch["weight"]),
            }

        spec = dict(model.batch_spec(self._batch_size))
        for extra in ("weight", "bytes"):
            spec[extra] = jax.ShapeDtypeStruct((self._batch_size,), jnp.float32)
        spec["row"] = jax.ShapeDtypeStruct((self._batch_size,), jnp.int32)
        lowered = jax.jit(sums).lower(self._setting.params, self._layout.batch_spec(spec))
        self.compiled = lowered.compile()

    def __call__(self, params: Params) -> Results:
        """Returns `eval/<set>/loss` and the model's other means that begin with "loss".

        For language models, whose loss is in nats, also `/perplexity` and `/bits_per_byte` (None
        where bytes are not known). All are None for a set in which nothing is predicted.
        """
        scalars: dict[str, float | None] = {}
        for eval_set in self._setting.eval_sets:
            sums = self._sums(params, eval_set)
            prefix = f"eval/{eval_set.name}"
            weight = sums["weight"]
            names = [name for name in sums if name[:4] == "loss"] or ["loss"]
            losses = {name: sums[name] / weight if weight else None for name in names}
            scalars |= {f"{prefix}/{name}": loss for name, loss in losses.items()}
            if self._is_language_model:
                loss, num_bytes = losses["loss"], sums["bytes"] if weight else 0.0
                scalars[f"{prefix}/perplexity"] = None if loss is None else perplexity(loss)
                scalars[f"{prefix}/bits_per_byte"] = bits_per_byte(sums["loss"], num_bytes)
        return Results(scalars=scalars)

    def _sums(self, params: Params, eval_set: EvalSet) -> dict[str, float]:
        total: dict[str, float] = defaultdict(float)
        for sums in read_back(self._steps(params, eval_set), self._setting.between_batches):
            for name, value in sums.items():
                total[name] += float(value)
        return total

    def _steps(self, params: Params, eval_set: EvalSet) -> Iterator[dict[str, jax.Array]]:
        num_examples = min(eval_set.num_examples, self._max_examples or eval_set.num_examples)
        for start in range(0, num_examples, self._batch_size):
            batch = self._read(eval_set, start, num_examples)
            yield self.compiled(params, self._layout.put(batch, self._batch_size))

    def _read(self, eval_set: EvalSet, start: int, stop: int) -> dict[str, np.ndarray]:
        """Returns this process's rows of the batch that begins at `start`."""
        rows = start + self._layout.local_rows(self._batch_size)
        batch = eval_set.batch(np.minimum(rows, stop - 1))
        num_bytes = eval_set.target_bytes(batch)
        if num_bytes is None:
            num_bytes = np.zeros(len(rows))
        return {
            **batch,
            "row": rows.astype(np.int32),
            "weight": (rows < stop).astype(np.float32),
            "bytes": num_bytes.astype(np.float32),
        }
