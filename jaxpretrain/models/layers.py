"""What all transformers here are made of: matrix products, norms, Linen modules, remat policies.

Parameters are float32 and are cast to the compute dtype where they are used. Each is made in a box
that holds its logical axes; `unbox` and `axes_of` separate the two. Weights are kept as [in, out]
matrices with heads merged, the layout that optimizers and checkpoint tables expect.

XLA's fast bfloat16 product on CPUs takes row-major operands and returns float32. For anything else
it falls back to a product of half the speed, and gradients are always such a case, because they
multiply by a transpose. `ROW_MAJOR` uses only the fast product. On other devices the plain products
are as fast.

Shapes: b batch, t positions, d model width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from jaxpretrain.config.ranges import Epsilon
from jaxpretrain.models.attention import keep_attention
from jaxpretrain.models.choices import RematPolicy
from jaxpretrain.models.contract import Constrain, Params


class Products(NamedTuple):
    """One way to multiply matrices."""

    name: str
    matmul: Callable[[jax.Array, jax.Array], jax.Array]
    """The product of x [r, k] in the compute dtype and w [k, n] in any, in the dtype of x."""
    transposed: Callable[[jax.Array], jax.Array]
    """The transpose [n, m] of [m, n], in a layout that is fast to multiply."""


class Precision(NamedTuple):
    """The dtype of activations and matrix products, and the way to compute the products."""

    dtype: jnp.dtype
    products: Products
    reduce_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    """The dtype to which gradients of weights are rounded before they are summed over devices."""


def choose_precision(platform: str, dtype: str, reduce_dtype: str = "float32") -> Precision:
    """Returns a compute dtype with its products for a platform ("cpu", "gpu", "tpu").

    In float32 models and on CPUs, gradients of weights stay in float32.
    """
    if dtype == "float32":
        return Precision(jnp.dtype(dtype), PLAIN)
    if platform == "cpu":
        return Precision(jnp.dtype(dtype), ROW_MAJOR)
    products = PLAIN if reduce_dtype == dtype else UNROUNDED
    return Precision(jnp.dtype(dtype), products, jnp.dtype(reduce_dtype))


def plain_matmul(x_rk: jax.Array, w_kn: jax.Array) -> jax.Array:
    """Returns x w, both in the dtype of x."""
    return x_rk @ w_kn.astype(x_rk.dtype)


def _row_major(x_rk: jax.Array, w_kn: jax.Array) -> jax.Array:
    out_rn = jnp.dot(x_rk, w_kn.astype(x_rk.dtype), preferred_element_type=jnp.float32)
    return out_rn.astype(x_rk.dtype)


def _forward(x_rk: jax.Array, w_kn: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _row_major(x_rk, w_kn), (x_rk, w_kn)


def _backward(
    residuals: tuple[jax.Array, jax.Array], dout_rn: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_rk, w_kn = residuals
    w_nk = transposed(w_kn.astype(x_rk.dtype))
    dx_rk = jnp.dot(dout_rn, w_nk, preferred_element_type=jnp.float32).astype(x_rk.dtype)
    dw_kn = jnp.dot(transposed(x_rk), dout_rn, preferred_element_type=jnp.float32)
    return dx_rk, dw_kn.astype(w_kn.dtype)


row_major_matmul = jax.custom_vjp(_row_major)
"""The same product as `plain_matmul`; the gradient of a float32 weight is not rounded."""

row_major_matmul.defvjp(_forward, _backward)


def transposed(a_mn: jax.Array) -> jax.Array:
    """Returns the transpose as a copy in row-major order; XLA would only swap the axes' names."""
    return with_layout_constraint(a_mn.T, Layout(major_to_minor=(0, 1)))


def _plain_forward(
    x_rk: jax.Array, w_kn: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    w_kn = w_kn.astype(x_rk.dtype)
    return x_rk @ w_kn, (x_rk, w_kn)


def _plain_backward(
    residuals: tuple[jax.Array, jax.Array], dout_rn: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # No operand is a transpose: of weights, XLA would gather that too where a layer is recomputed.
    x_rk, w_kn = residuals
    dx_rk = jax.lax.dot_general(dout_rn, w_kn, (((1,), (1,)), ((), ())))
    rows = ((0,), (0,)), ((), ())
    return dx_rk, jax.lax.dot_general(x_rk, dout_rn, rows, preferred_element_type=jnp.float32)


unrounded_matmul = jax.custom_vjp(plain_matmul)
"""The same product as `plain_matmul`; the gradient of a float32 weight is not rounded."""

unrounded_matmul.defvjp(_plain_forward, _plain_backward)

PLAIN = Products("plain", plain_matmul, jnp.transpose)
UNROUNDED = Products("plain", unrounded_matmul, jnp.transpose)
ROW_MAJOR = Products("row-major", row_major_matmul, transposed)


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


def multiply(x: jax.Array, factor: float) -> jax.Array:
    """Returns x times a factor; x itself where the factor is one, so that no program changes."""
    return x if factor == 1.0 else x * factor


class Linear(nn.Module):
    """A linear map y = x W, [.., in] -> [.., out], plus a bias where it has an initialiser.

    W is the kernel times `factor`.
    """

    features: int
    axes: tuple[str, str]
    precision: Precision
    kernel_init: Initializer
    bias_init: Initializer | None = None
    factor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the output in the compute dtype."""
        dtype, products, _ = self.precision
        kernel = weight(self, "kernel", self.kernel_init, self.axes, (x.shape[-1], self.features))
        # As one matrix: with two contracted axes the weight gradient misses XLA's fast CPU product.
        x_ri = x.astype(dtype).reshape(-1, x.shape[-1])
        y_ro = products.matmul(x_ri, multiply(kernel, self.factor))
        if self.bias_init is not None:
            bias_o = weight(self, "bias", self.bias_init, self.axes[1:], (self.features,))
            y_ro = y_ro + bias_o.astype(dtype)[None]
        return y_ro.reshape(*x.shape[:-1], self.features)


class Embedding(nn.Module):
    """A table of vectors, [b, t] -> [b, t, d]. Ids must lie in it: the gather clamps silently.

    Its gradient is summed in float32. A frequent token adds up thousands of vectors, of which
    bfloat16 would lose some percent.
    """

    rows: int
    features: int
    initializer: Initializer
    dtype: jnp.dtype
    constrain: Constrain

    @nn.compact
    def __call__(self, tokens_bt: jax.Array) -> jax.Array:
        """Returns the rows of the token ids in the compute dtype."""
        shape = self.rows, self.features
        table_vd = weight(self, "embedding", self.initializer, ("vocab", "embed"), shape)

        @jax.custom_vjp
        def rows(table_vd: jax.Array, tokens_bt: jax.Array) -> jax.Array:
            # Gathered over the data axes first: rows of a table cut along d would come in pieces.
            return self.constrain(table_vd.astype(self.dtype), ("vocab", None))[tokens_bt]

        def forward(table_vd: jax.Array, tokens_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
            return rows(table_vd, tokens_bt), tokens_bt

        def backward(tokens_bt: jax.Array, dx_btd: jax.Array) -> tuple[jax.Array, None]:
            # Devices exchange the vectors of tokens, of each its part, not sums of whole tables.
            dx_btd = self.constrain(dx_btd, (None, None, "embed")).astype(jnp.float32)
            tokens_bt = self.constrain(tokens_bt, (None, None))
            dtable_vd = self.constrain(jnp.zeros(shape, jnp.float32), (None, "embed"))
            dtable_vd = self.constrain(dtable_vd.at[tokens_bt].add(dx_btd), (None, "embed"))
            return self.constrain(dtable_vd, ("vocab", "embed")), None

        rows.defvjp(forward, backward)
        return rows(table_vd, tokens_bt)


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


ZEROS, _ONES = nn.initializers.zeros_init(), nn.initializers.ones_init()

NormRounding = Literal["before_scale", "after_scale"]
"""The places where RMSNorm may leave float32."""


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm, in OLMo 1 without parameters."""

    epsilon: Epsilon = 1e-5
    """The number that is added to the variance."""


@dataclass(frozen=True)
class RMSNorm:
    """RMSNorm with a scale (OLMo 2 and 3)."""

    epsilon: Epsilon = 1e-5
    """The number that is added to the mean square."""
    rounding: NormRounding = "before_scale"
    """The place of the rounding to the input's dtype: before_scale (OLMo's trainer), or once, to
    the compute dtype, after_scale (OLMo-core)."""


class Norm(nn.Module):
    """A norm over the last axis in float32; LayerNorm has a scale and a bias where it is affine."""

    choice: LayerNorm | RMSNorm
    axis: str
    dtype: jnp.dtype
    affine: bool = False

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Returns the input with its last axis normalised, in the compute dtype."""
        choice, y_btd = self.choice, x_btd.astype(jnp.float32)
        if isinstance(choice, LayerNorm):
            y_btd = y_btd - jnp.mean(y_btd, axis=-1, keepdims=True)
        mean_bt1 = jnp.mean(jnp.square(y_btd), axis=-1, keepdims=True)
        y_btd = y_btd * jax.lax.rsqrt(mean_bt1 + choice.epsilon)
        if isinstance(choice, RMSNorm):
            if choice.rounding == "before_scale":
                y_btd = y_btd.astype(x_btd.dtype)
            y_btd = y_btd * self._vector("scale", _ONES, x_btd).astype(y_btd.dtype)
        elif self.affine:
            y_btd = y_btd * self._vector("scale", _ONES, x_btd)
            y_btd = y_btd + self._vector("bias", ZEROS, x_btd)
        return y_btd.astype(self.dtype)

    def _vector(self, name: str, init: Initializer, x_btd: jax.Array) -> jax.Array:
        return weight(self, name, init, (self.axis,), x_btd.shape[-1:])[None, None]
