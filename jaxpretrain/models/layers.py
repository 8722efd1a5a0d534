"""What all transformers here are made of: Linen modules, their parameters, remat policies.

Parameters are float32 and are cast to the compute dtype where they are used. Each is made in a box
that holds its logical axes; `unbox` and `axes_of` separate the two. Weights are kept as [in, out]
matrices with heads merged, the layout that optimizers and checkpoint tables expect.

Shapes: b batch, t positions, d model width.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxpretrain.models.attention import keep_attention
from jaxpretrain.models.choices import RematPolicy
from jaxpretrain.models.contract import Constrain, Params
from jaxpretrain.models.matmul import Precision

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]
"""The type of a function of a key, a shape and a dtype that draws a parameter."""


def truncated_normal(std: float | jax.Array, cutoff: float | None) -> Initializer:
    """Returns normal draws with `std`, cut at +-`cutoff` standard deviations (None: not cut).

    As in OLMo, `std` is that of the normal before the cut; at cutoff 3 the draws have 0.98658 std.
    """

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        if cutoff is None:
            return std * jax.random.normal(rng, shape, dtype)
        return std * jax.random.truncated_normal(rng, -cutoff, cutoff, shape, dtype)

    return init


def weight(
    module: nn.Module, name: str, init: Initializer, axes: tuple[str, ...], shape: tuple[int, ...]
) -> jax.Array:
    """Returns a float32 parameter of `module`, made in a box with its logical axes."""
    box: Any = nn.with_partitioning(init, axes)
    return module.param(name, box, shape, jnp.float32)


def init(module: nn.Module, rng: jax.Array, *inputs: Any) -> Params:
    """Returns fresh parameters of `module` in their boxes; {} where it has none."""
    variables: dict[str, Params] = module.init(rng, *inputs)  # pyright: ignore[reportAssignmentType]
    return variables.get("params", {})


def stacked(boxed: Params) -> Params:
    """Returns the same boxes with the name of a new first axis, which counts layers."""
    rename = lambda box: box.replace(names=("layers", *box.names))  # noqa: E731
    return jax.tree.map(rename, boxed, is_leaf=_is_box)


def unbox(boxed: Params) -> Params:
    """Returns the arrays of a tree of boxes."""
    return jax.tree.map(lambda box: box.value, boxed, is_leaf=_is_box)


def axes_of(make: Callable[[jax.Array], Params]) -> Params:
    """Returns the logical axes of the boxes that `make` returns for a key, without running it."""
    boxed = jax.eval_shape(make, jax.random.key(0))
    return jax.tree.map(lambda box: box.names, boxed, is_leaf=_is_box)


def _is_box(node: object) -> bool:
    return isinstance(node, nn.Partitioned)


class Linear(nn.Module):
    """A linear map y = x W, [.., in] -> [.., out], plus a bias where it has an initialiser."""

    features: int
    axes: tuple[str, str]
    precision: Precision
    kernel_init: Initializer
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the output in the compute dtype."""
        dtype, products = self.precision
        kernel = weight(self, "kernel", self.kernel_init, self.axes, (x.shape[-1], self.features))
        # As one matrix: with two contracted axes the weight gradient misses XLA's fast CPU product.
        y_ro = products.matmul(x.astype(dtype).reshape(-1, x.shape[-1]), kernel)
        if self.bias_init is not None:
            bias_o = weight(self, "bias", self.bias_init, self.axes[1:], (self.features,))
            y_ro = y_ro + bias_o.astype(dtype)[None]
        return y_ro.reshape(*x.shape[:-1], self.features)


class Embedding(nn.Module):
    """A table of vectors, token ids [b, t] -> [b, t, d].

    Ids must lie in the table: the gather would clamp silently.
    """

    rows: int
    features: int
    initializer: Initializer
    dtype: jnp.dtype
    constrain: Constrain

    @nn.compact
    def __call__(self, tokens_bt: jax.Array) -> jax.Array:
        """Returns the rows of the token ids in the compute dtype."""
        table_vd = weight(
            self, "embedding", self.initializer, ("vocab", "embed"), (self.rows, self.features)
        )
        # Gathered whole over the data axes first: rows of a table cut along d would come in pieces.
        return self.constrain(table_vd.astype(self.dtype), ("vocab", None))[tokens_bt]


def remat(block: Callable, policy: RematPolicy, *, scanned: bool) -> Callable:
    """Returns `block` with its activations recomputed in the backward pass, as the policy says.

    none: everything is kept. attention: the output of attention is kept (the costliest thing to
    recompute for its size). dots: matrix products too. full: only the block's input.
    """
    if policy == "none":
        return block
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.save_from_both_policies(products, keep_attention),
        "attention": keep_attention,
    }
    # Outside of scan, XLA would find the two computations equal and keep the first.
    return jax.checkpoint(block, policy=policies[policy], prevent_cse=not scanned)


def apply(module: nn.Module, params: Params, *inputs: Any) -> Any:
    """Returns what `module` computes with its parameters."""
    return module.apply({"params": params}, *inputs)
