"""Transformer parts as Linen modules: linear maps, norms, remat policies.

Parameters are float32 and are cast to the compute dtype where they are used. Each declares its
logical axes where it is made; `models.stack` takes the boxes off. Weights are kept as
[in, out] matrices with heads merged, the layout that optimizers and checkpoint tables expect.

Shapes: b batch, t positions, d model width.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.attention import keep_attention
from jaxpretrain.models.choices import NormRounding, RematChoice, RematPolicy
from jaxpretrain.models.contract import Constrain
from jaxpretrain.models.matmul import Products

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


def truncated_normal(std: float | jax.Array, cutoff: float | None) -> Initializer:
    """Normal with `std`, cut at +-`cutoff` standard deviations (None: not cut).

    As in OLMo, `std` is that of the normal before the cut; at cutoff 3 the draws have 0.98658 std.
    """

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        if cutoff is None:
            return std * jax.random.normal(rng, shape, dtype)
        return std * jax.random.truncated_normal(rng, -cutoff, cutoff, shape, dtype)

    return init


def weight(
    module: nn.Module,
    name: str,
    init: Initializer,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    """A float32 parameter of `module` with its logical axes."""
    box: Any = nn.with_partitioning(init, axes)
    return module.param(name, box, shape, jnp.float32)


class Linear(nn.Module):
    """y = x W, [.., in] -> [.., out], without bias."""

    features: int
    axes: tuple[str, str]
    initializer: Initializer
    dtype: jnp.dtype
    products: Products

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[.., in] -> [.., out] in the compute dtype."""
        kernel = weight(self, "kernel", self.initializer, self.axes, (x.shape[-1], self.features))
        # As one matrix: with two contracted axes the weight gradient misses XLA's fast CPU product.
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        return self.products.matmul(rows, kernel).reshape(*x.shape[:-1], self.features)


class Embedding(nn.Module):
    """Token ids [b, t] -> [b, t, d]. Ids must lie in the table: the gather would clamp silently."""

    rows: int
    features: int
    initializer: Initializer
    dtype: jnp.dtype
    constrain: Constrain

    @nn.compact
    def __call__(self, tokens_bt: jax.Array) -> jax.Array:
        """[b, t] -> [b, t, d] in the compute dtype."""
        table_vd = weight(
            self, "embedding", self.initializer, ("vocab", "embed"), (self.rows, self.features)
        )
        # Gathered whole over the data axes first: rows of a table cut along d would come in pieces.
        return self.constrain(table_vd.astype(self.dtype), ("vocab", None))[tokens_bt]


class Norm(nn.Module):
    """LayerNorm without parameters, or RMSNorm with a scale; computed in float32.

    RMSNorm rounds to the dtype of its input before it applies the scale, as OLMo's trainer does, or
    once, after it, as OLMo-core does.
    """

    kind: Literal["layernorm", "rmsnorm"]
    epsilon: float
    axis: str
    dtype: jnp.dtype
    rounding: NormRounding = "before_scale"

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Normalises the last axis; the compute dtype comes out."""
        y_btd = x_btd.astype(jnp.float32)
        if self.kind == "layernorm":
            y_btd = y_btd - jnp.mean(y_btd, axis=-1, keepdims=True)
        inverse_bt1 = jax.lax.rsqrt(
            jnp.mean(jnp.square(y_btd), axis=-1, keepdims=True) + self.epsilon
        )
        y_btd = y_btd * inverse_bt1
        if self.kind == "rmsnorm":
            ones = nn.initializers.ones_init()
            scale_d = weight(self, "scale", ones, (self.axis,), x_btd.shape[-1:])
            if self.rounding == "before_scale":
                y_btd = y_btd.astype(x_btd.dtype)
            y_btd = y_btd * scale_d.astype(y_btd.dtype)[None, None, :]
        return y_btd.astype(self.dtype)


def chosen(choice: RematChoice) -> RematPolicy:
    """The policy, when it is one.

    Raises:
      InputError: it is still open.
    """
    if choice != "auto":
        return choice
    raise InputError("model.remat=auto: jaxpretrain.main and .plan choose; set it")


def remat(block: Callable, policy: RematPolicy, *, scanned: bool) -> Callable:
    """`block` with its activations recomputed in the backward pass, as the policy says.

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


def apply(module: nn.Module, params: dict[str, Any], *inputs: Any) -> Any:
    """`module` on its parameters."""
    return module.apply({"params": params}, *inputs)
