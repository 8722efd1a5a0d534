"""The contract of models: everything that the trainer, the planner and the evaluators use of one.

Losses are sums with their weights, so that microbatches, devices, hosts and evaluation batches add
up exactly.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from jaxpretrain.models.costs import Costs
from jaxpretrain.models.scaling import FactorsOf

Params = dict[str, Any]
"""A nested dict of arrays; leaf names (kernel, scale, bias, embedding) say what they are."""

Batch = Mapping[str, jax.Array]
"""Arrays by name; the first axis is the batch. Optional are `weight` [B], the weights of examples
(0 for padding), `row` [B], their numbers in the whole batch or in an evaluation set, and `mask`
[B, T], true where a token counts as a target."""

Axes = tuple[str | None, ...]
"""A logical name for each dimension of an array; None: not divided."""


def is_axes(node: object) -> bool:
    """Returns true for the axes of one array, a leaf of the tree of `Model.axes`."""
    return isinstance(node, tuple)


Cache = Any
"""A tree of arrays with which a language model continues a text without reading it again."""

Constrain = Callable[[jax.Array, Axes], jax.Array]
"""A function that pins the layout of an activation by its logical axes. `parallel` provides it, so
that models know neither mesh nor devices."""


def unconstrained(x: jax.Array, axes: Axes) -> jax.Array:
    """Returns the activation as it is; for a single device."""
    return x


Shard = Callable[[Callable[..., jax.Array], Sequence[jax.Array], Sequence[Axes]], jax.Array]
"""A function (f, arrays, axes) that runs f(*arrays) on each device for its own part of the arrays,
which the axes divide; for kernels that XLA cannot divide. The result has the shape of the first
array and is divided like it. `parallel` provides it."""


def unsharded(
    f: Callable[..., jax.Array], arrays: Sequence[jax.Array], axes: Sequence[Axes]
) -> jax.Array:
    """Returns f(*arrays); for a single device."""
    return f(*arrays)


class Spread(NamedTuple):
    """The ways between a matrix that devices share, each with a part, and the whole of it."""

    gather: Callable[[jax.Array], jax.Array]
    """Returns the whole of a part, in its dtype."""
    scatter: Callable[[jax.Array], jax.Array]
    """Returns the own part of the sum of all devices' matrices, which is taken in their dtype."""


IN_ONE = Spread(lambda part: part, lambda whole: whole)
"""The ways on a device that has all of the matrix."""

ByRows = Callable[
    [Callable[..., tuple[jax.Array, ...]], jax.Array, Axes, Sequence[jax.Array]],
    tuple[jax.Array, ...],
]
"""A function (f, matrix, axes, rows) that runs f(spread, part, *rows) on each data-parallel device:
for its part of the matrix, which the axes divide, and its own rows of arrays [b, ...]. The results
are joined along their first axis. `parallel` provides it."""


def in_one(
    f: Callable[..., tuple[jax.Array, ...]],
    matrix: jax.Array,
    axes: Axes,
    rows: Sequence[jax.Array],
) -> tuple[jax.Array, ...]:
    """Returns f(IN_ONE, matrix, *rows); for a single device."""
    return f(IN_ONE, matrix, *rows)


class Branches(NamedTuple):
    """Rows of tokens in which stems are followed by branches, which continue them; int32.

    A position sees its stem and its own branch but no other branch. Each branch is computed as if
    it followed the stem alone, and the stem is computed once. A stem comes before its branches, and
    each of them is contiguous; a row may hold several stems.
    """

    stems_bt: jax.Array
    """The number of the stem that a position belongs to or continues; neighbours differ."""
    branches_bt: jax.Array
    """The number of the branch, 0 in a stem; neighbouring branches differ."""
    positions_bt: jax.Array
    """The rotary positions, by which windows are measured; a branch continues those of its stem."""


class Model(Protocol):
    """A model family at one size."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a batch of `batch_size` examples, by name."""
        ...

    def input_limits(self) -> dict[str, int]:
        """Returns the exclusive upper bounds of integer inputs, such as a vocabulary size."""
        ...

    def init(self, rng: jax.Array) -> Params:
        """Returns fresh parameters; it can be traced, and so run sharded or abstractly."""
        ...

    def axes(self) -> Params:
        """Returns the tree of `init` with the logical axes of each array in its place."""
        ...

    def loss(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns (sum of the objective, sum of weights, {name: sums of each example [B]}).

        Training divides the objective by the sum of weights. Among the names, `loss` is the
        quantity to report (without regularisers such as z-loss), and `weight` is the weight of each
        example, by which evaluation divides. The named sums carry no gradient.

        `rng` is the same for all microbatches of a step. Draws for an example must come from
        `fold_in(rng, row)`, so that they depend neither on microbatches nor on devices.
        """
        ...

    def signals(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """Returns the signals of the layers on a few examples (see `stack`), by name.

        Names end with the stack, `attention_logit/blocks`. `rng` is used as in `loss`.
        """
        ...

    def coordinates(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """Returns what the layers compute for a few examples, float32, and `logits`, by name.

        Arrays whose names end with a stack, `activation/blocks`, begin with an axis of layers.
        """
        ...

    @property
    def factors(self) -> FactorsOf | None:
        """The factors of the settings of each parameter, unless sizes share no settings."""
        ...

    def flops_per_example(self, *, causal: bool) -> float:
        """Returns the floating-point operations of forward and backward for one example.

        `causal=False` counts attention over all pairs of positions, as most published MFU figures
        do; `causal=True` only the pairs that the mask lets through.
        """
        return sum(self.costs().flops_by_part(causal=causal).values())

    def costs(self) -> Costs:
        """Returns the costs of an example by part, in arithmetic and in memory."""
        ...

    def units_per_example(self) -> tuple[str, int]:
        """Returns the unit of throughput and its number in an example, such as ("tokens", 2048)."""
        ...

    def describe(self) -> list[str]:
        """Returns lines for start-up on what is active: kernel, dtypes, remat, layers."""
        ...


@runtime_checkable
class LanguageModel(Model, Protocol):
    """A model that predicts tokens and can continue a text."""

    def logits(self, params: Params, tokens_bt: jax.Array) -> jax.Array:
        """Returns float32 logits [b, t, v] of the next token at each position."""
        ...

    def hidden(
        self, params: Params, tokens_bt: jax.Array, branches: Branches | None = None
    ) -> jax.Array:
        """Returns the final hidden states, [b, t, d] in the compute dtype."""
        ...

    def prefill(self, params: Params, tokens_bt: jax.Array, length: int) -> tuple[jax.Array, Cache]:
        """Returns `hidden` and a cache of these tokens, with room for `length` in each row."""
        ...

    def extend(
        self, params: Params, tokens_bt: jax.Array, cache: Cache, first_b: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Returns `hidden` of more tokens, and the cache that holds them too.

        `first_b` is the position of the first of them in each row, at most the number that the row
        has already. The cache forgets later positions: in this way padding is overwritten.
        """
        ...

    def token_losses(self, params: Params, batch: Batch) -> jax.Array:
        """Returns float32 [b, t]: the loss of each token where it is predicted, in nats.

        It is 0 for the first token, and where the mask or the weights leave a token out.
        """
        ...

    @property
    def document_end(self) -> int | None:
        """The token that ends a text, where the model knows of one."""
        ...

    def output_kernel(self, params: Params) -> jax.Array:
        """Returns the matrix [d, v] that turns hidden states into logits, in the compute dtype."""
        ...


@runtime_checkable
class ImageModel(Model, Protocol):
    """A masked autoencoder of images: it computes features and predicts removed patches."""

    def encode(self, params: Params, images_bhwc: jax.Array) -> jax.Array:
        """Returns features [b, 1 + l, d] of the class token and of all patches; none is masked."""
        ...

    def reconstruct(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the images, their seen patches, and the predictions; [b, h, w, 3] in [0, 1]."""
        ...

    def patch_losses(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        """Returns float32 [b, l]: the error of each removed patch, 0 for the seen ones.

        Patches go row by row. Masks are those of `loss`.
        """
        ...


def count_computing(params: Params) -> int:
    """Returns the number of parameters without those of the embedding, which take no arithmetic.

    Shapes alone will do for the arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(x.shape) for path, x in leaves if path[-1].key != "embedding")
