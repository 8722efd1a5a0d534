"""What every model family gives to the trainer, the planner and the evaluators.

Nothing outside `models/` knows more of a model than this. Losses are sums with their weights, so
that microbatches, devices, hosts and evaluation batches add up exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from jaxpretrain.models.costs import Costs

Params = dict[str, Any]
"""A nested dict of arrays; leaf names (kernel, scale, bias, embedding) say what they are."""

Batch = Mapping[str, jax.Array]
"""Arrays by name, first axis the batch. Optional: `weight` [B] weighs the examples; `row` [B] is
the number of each in the whole batch, or in a set that is evaluated; `mask` [B, T] is true where a
token counts as a target."""

Axes = tuple[str | None, ...]
"""A logical name for each dimension of an array; None: not divided."""

Cache = Any
"""What a language model keeps of the positions of a text, to go on from there; a tree of arrays."""

Constrain = Callable[[jax.Array, Axes], jax.Array]
"""Pins an activation's layout by its logical axis names; given by `parallel`, so that models know
neither mesh nor devices."""


def unconstrained(x: jax.Array, axes: Axes) -> jax.Array:
    """The `Constrain` of a single device: leaves the layout alone."""
    del axes
    return x


Shard = Callable[[Callable[..., jax.Array], Sequence[jax.Array], Sequence[Axes]], jax.Array]
"""`shard(f, arrays, axes)`: f(*arrays) by each device on its own part of the arrays, which the axes
divide; for kernels that XLA cannot divide. The result has the shape of the first array and is
divided like it. Given by `parallel`, as `Constrain` is."""


def unsharded(
    f: Callable[..., jax.Array], arrays: Sequence[jax.Array], axes: Sequence[Axes]
) -> jax.Array:
    """The `Shard` of a single device."""
    del axes
    return f(*arrays)


class Branches(NamedTuple):
    """Rows of tokens that hold stems, each followed by branches that go on from its end; int32.

    A position sees its stem and its own branch, never another branch, so that each branch is as the
    stem and itself alone, and the stem is computed once. A stem comes before its branches, and each
    of them lies in one piece; a row may hold many stems, one after the other.
    """

    stems_bt: jax.Array
    """Number of the stem that a position belongs to or goes on from; neighbours have others."""
    branches_bt: jax.Array
    """0 in a stem; its branches have other numbers, neighbours not the same."""
    positions_bt: jax.Array
    """Rotary positions, which windows measure too; a branch goes on from its stem's last."""


class Model(Protocol):
    """A model family at one size."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape and dtype of a batch of `batch_size` examples."""
        ...

    def input_limits(self) -> dict[str, int]:
        """Name -> exclusive upper bound of the values of an integer input (a vocabulary size)."""
        ...

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters; traceable, so that it can run sharded or abstractly."""
        ...

    def axes(self) -> Params:
        """The tree of `init` with a tuple of logical axis names for each array."""
        ...

    def loss(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum of the training objective, sum of weights, {name: sums of each example [B]}).

        The objective is divided by the sum of weights. Among the names, `loss` is the quantity to
        report (without regularisers such as z-loss) and `weight` the weight of each example, by
        which evaluation divides; the names carry no gradient.

        `rng` is the same for all microbatches of a step. What is drawn for an example must come
        from `fold_in(rng, row)`, so that it depends neither on microbatches nor on devices.
        """
        ...

    def signals(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """What its layers show on a few examples: float32 [layers] from the bottom, by name.

        Names end with the stack, `attention_logit/blocks`. `rng` is that of `loss`.
        """
        ...

    def flops_per_example(self, *, causal: bool) -> float:
        """Floating-point operations of forward and backward for one example.

        `causal=False` counts attention over all pairs of positions, as most published MFU figures
        do; `causal=True` only the pairs that the mask lets through.
        """
        ...

    def costs(self) -> Costs:
        """What an example costs by part, in arithmetic and in memory, as it is computed here."""
        ...

    def units_per_example(self) -> tuple[str, int]:
        """What throughput is counted in, and how many an example holds: ("tokens", 2048)."""
        ...

    def describe(self) -> list[str]:
        """Lines for start-up that say what is really active: kernel, dtypes, remat, layers."""
        ...


@runtime_checkable
class LanguageModel(Model, Protocol):
    """A model that predicts tokens, and so can continue a text."""

    def logits(self, params: Params, tokens_bt: jax.Array) -> jax.Array:
        """Float32 logits [b, t, v] of the next token at each position."""
        ...

    def hidden(
        self, params: Params, tokens_bt: jax.Array, branches: Branches | None = None
    ) -> jax.Array:
        """What logits are made of, [b, t, d] in the compute dtype."""
        ...

    def prefill(self, params: Params, tokens_bt: jax.Array, length: int) -> tuple[jax.Array, Cache]:
        """`hidden`, and a cache with room for `length` positions of each row that holds these."""
        ...

    def extend(
        self, params: Params, tokens_bt: jax.Array, cache: Cache, first_b: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """`hidden` of more tokens, and the cache that holds them too.

        `first_b` is the position of the first of them in each row, at most as many as the row has
        by now. Positions that come later than it are forgotten: this is how padding is overwritten.
        """
        ...

    @property
    def document_end(self) -> int | None:
        """Token after which nothing of the same text comes, where the model knows of one."""
        ...

    def output_kernel(self, params: Params) -> jax.Array:
        """What they are made with, [d, v] in the compute dtype."""
        ...


@runtime_checkable
class ImageModel(Model, Protocol):
    """A masked autoencoder of images: it has features of an image, and it paints."""

    def encode(self, params: Params, images_bhwc: jax.Array) -> jax.Array:
        """Features [b, 1 + l, d] of the class token and of all patches, nothing masked."""
        ...

    def reconstruct(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The images, what is seen of them, and the images as painted; [b, h, w, 3] in [0, 1]."""
        ...
