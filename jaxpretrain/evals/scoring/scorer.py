"""Log-likelihoods of continuations; the head runs once for each place that tokens follow.

Shapes: b batch, t positions, g groups of b / g rows (as the batch is divided over devices), n
places of each group, m tokens that are scored at them, c places of a chunk, d model width, v
vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.packing import Batch, Packed, Shape
from jaxpretrain.models.contract import Branches, LanguageModel, Model, Params
from jaxpretrain.parallel.mesh import Layout

T = TypeVar("T")

_MAX_IN_FLIGHT = 4


def never_interrupt() -> None:
    """Does nothing: the default between batches."""


def read_back(
    outputs: Iterable[T], between_batches: Callable[[], None] = never_interrupt
) -> Iterator[T]:
    """Yields the outputs of batches in their order, on the host.

    Some more batches are asked for before the first is waited for. Values that are no arrays come
    along as they are. An exception that `between_batches` raises ends the evaluation.
    """
    waiting: deque[T] = deque()
    for output in outputs:
        waiting.append(output)
        between_batches()
        if len(waiting) > _MAX_IN_FLIGHT:
            yield jax.device_get(waiting.popleft())
    while waiting:
        yield jax.device_get(waiting.popleft())


_LOGITS_AT_ONCE = 512
"""Places of a group whose logits exist at once."""


@dataclass(frozen=True)
class Scores:
    """The scores of requests, in their order."""

    log_likelihoods: np.ndarray  # float64 [n], nats
    is_greedy: np.ndarray  # bool [n]: each token of the continuation is the likeliest


class Scorer:
    """Scores requests with any parameters of one model; compiled once for each shape of batches.

    The context is the model's sequence length. `batch_tokens` are those of a batch, over all
    devices; an exception that `between_batches` raises ends the scoring. Raises InputError where
    the model predicts no tokens.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        params: Params,
        *,
        batch_tokens: int,
        between_batches: Callable[[], None] = never_interrupt,
    ) -> None:
        if not isinstance(model, LanguageModel):
            raise InputError("this model predicts no tokens, so it cannot be evaluated on tasks")
        self.context_length = model.units_per_example()[1]
        self.vocab_size = model.input_limits()["tokens"]
        self.model = model
        self.layout = layout
        self._params = params
        self._batch_tokens = batch_tokens
        self._between_batches = between_batches
        self._compiled: dict[Shape, jax.stages.Compiled] = {}

    def plan(self, requests: Sequence[Request]) -> Packed:
        """Plans the batches; InputError where a continuation alone is longer than the context."""
        return Packed(
            requests,
            context_length=self.context_length,
            batch_tokens=self._batch_tokens,
            num_data=self.layout.num_data,
        )

    def compile(self, packed: Packed) -> None:
        """Compiles a program for each shape of batches that has none yet."""
        for shape in packed.shapes - self._compiled.keys():
            self._compiled[shape] = self._compile(shape)

    def prepare(self, requests: Sequence[Request]) -> Packed:
        """Plans and compiles at once."""
        packed = self.plan(requests)
        self.compile(packed)
        return packed

    def __call__(self, params: Params, packed: Packed) -> Scores:
        """Scores requests that were planned and compiled. The parameters stay as they are."""
        log_likelihoods = np.zeros(packed.num_requests)
        is_greedy = np.ones(packed.num_requests, bool)
        outputs = read_back(self._run(params, packed), self._between_batches)
        for batch, (log_probs, likeliest) in outputs:
            used = batch.owners >= 0
            np.add.at(log_likelihoods, batch.owners[used], log_probs[used].astype(np.float64))
            np.logical_and.at(is_greedy, batch.owners[used], likeliest[used])
        return Scores(log_likelihoods, is_greedy)

    def _run(
        self, params: Params, packed: Packed
    ) -> Iterator[tuple[Batch, tuple[jax.Array, jax.Array]]]:
        for batch, (_, shape) in zip(packed, packed.batches, strict=True):
            groups = {name: getattr(batch, name) for name in ("places", "after", "targets")}
            arrays = self._put(batch.rows, shape.rows[0]) | self._put(groups, shape.places[0])
            yield batch, self._compiled[shape](params, arrays)

    def _put(self, arrays: dict[str, np.ndarray], num_rows: int) -> dict[str, jax.Array]:
        mine = self.layout.local_rows(num_rows)
        return self.layout.put({name: a[mine] for name, a in arrays.items()}, num_rows)

    def _compile(self, shape: Shape) -> jax.stages.Compiled:
        numbers = Branches._fields if shape.has_branches else ()

        def scores(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            branches = Branches(*(batch[name] for name in numbers)) if numbers else None
            scored = (batch["places"], batch["after"], batch["targets"])
            return next_token_scores(self.model, params, batch["tokens"], branches, *scored)

        sizes = dict.fromkeys(("tokens", *numbers), shape.rows)
        sizes |= {"places": shape.places, "after": shape.targets, "targets": shape.targets}
        spec = {name: jax.ShapeDtypeStruct(size, jnp.int32) for name, size in sizes.items()}
        # Every process gets all scores: each computes the same metrics.
        program = jax.jit(scores, out_shardings=self.layout.replicated)
        return program.lower(self._params, self.layout.batch_spec(spec)).compile()


def next_token_scores(
    model: LanguageModel,
    params: Params,
    tokens_bt: jax.Array,
    branches: Branches | None,
    places_gn: jax.Array,
    after_gm: jax.Array,
    targets_gm: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probability of each target, in nats, and true where no token is likelier.

    Both are [g, m]. A place is row within the group * t + index; `after` holds the number of the
    place that a target would follow.
    """
    x_btd = model.hidden(params, tokens_bt, branches)
    num_groups, num_places = places_gn.shape
    x_ged = x_btd.reshape(num_groups, -1, x_btd.shape[-1])  # e: everywhere in a group
    x_gnd = jnp.take_along_axis(x_ged, places_gn[..., None], axis=1)
    kernel_dv = model.output_kernel(params)
    log_prob_gm = jnp.zeros(targets_gm.shape, jnp.float32)
    likeliest_gm = jnp.zeros(targets_gm.shape, bool)
    for start in range(0, num_places, _LOGITS_AT_ONCE):
        x_gcd = x_gnd[:, start : start + _LOGITS_AT_ONCE]
        logits_gcv = jnp.einsum("gcd,dv->gcv", x_gcd, kernel_dv, preferred_element_type=jnp.float32)
        is_here_gm = (after_gm >= start) & (after_gm < start + x_gcd.shape[1])
        here_gm = jnp.where(is_here_gm, after_gm - start, 0)
        at_gm = jnp.arange(num_groups)[:, None], here_gm
        target_gm = logits_gcv[*at_gm, targets_gm]
        log_norm_gm = jax.nn.logsumexp(logits_gcv, axis=-1)[at_gm]
        peak_gm = jnp.max(logits_gcv, axis=-1)[at_gm]
        log_prob_gm = jnp.where(is_here_gm, target_gm - log_norm_gm, log_prob_gm)
        likeliest_gm = jnp.where(is_here_gm, target_gm >= peak_gm, likeliest_gm)
    return log_prob_gm, likeliest_gm
