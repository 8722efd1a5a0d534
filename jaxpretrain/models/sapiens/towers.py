"""What both halves of a masked autoencoder are: patches to features, and features to pixels.

Initialisation is that of MAE in mmpretrain, from which Sapiens comes. Parameters are float32 and
are cast to the compute dtype where they are used.

Shapes: b batch, t tokens (patches and the class token), k patches or features, i values of one of
them, d width, n heads, h head size, f d_ff, p values of a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxpretrain.models import layers, stack
from jaxpretrain.models.attention_kernels import QUERY_CHUNK
from jaxpretrain.models.choices import AttentionKernel, RematPolicy
from jaxpretrain.models.contract import Constrain, Params
from jaxpretrain.models.costs import Blocks
from jaxpretrain.models.layers import ZEROS, Initializer, LayerNorm, Linear, Norm, Precision, weight
from jaxpretrain.models.masks import Mask
from jaxpretrain.models.sapiens.patches import Positions
from jaxpretrain.models.scaling import BASE, Growth, Role

EPSILON = 1e-6
"""The number that LayerNorm adds to the variance."""


def uniform(bound: float) -> Initializer:
    """Returns uniform draws within +-bound."""

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init


def xavier(num_fused: int, role: Role = "fixed", growth: Growth = BASE) -> Initializer:
    """Returns uniform draws within +-sqrt(6 / (in + num_fused * out)), in and out at the base size.

    The reference makes queries, keys and values with one [d, 3 d] matrix, whose bound is smaller
    than that of three matrices: here each is one of `num_fused` parts.
    """

    def init(rng: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        num_in = growth.base(shape[0]) if role in ("hidden", "output") else shape[0]
        num_out = growth.base(shape[1]) if role in ("hidden", "input") else shape[1]
        bound = (6.0 / (num_in + num_fused * num_out)) ** 0.5
        return uniform(bound * growth.factors(role).deviation)(rng, shape, dtype)

    return init


def linear(
    features: int,
    axes: tuple[str, str],
    precision: Precision,
    *,
    num_fused: int = 1,
    bias_init: Initializer = ZEROS,
    role: Role = "fixed",
    growth: Growth = BASE,
    name: str | None = None,
) -> Linear:
    """Returns a linear map with a bias whose kernel is one of `num_fused` parts of a matrix."""
    init, factor = xavier(num_fused, role, growth), growth.factors(role).product
    return Linear(features, axes, precision, init, bias_init, factor, name=name)


def layer_norm(precision: Precision, name: str | None = None) -> Norm:
    """Returns a LayerNorm with scale and bias."""
    return Norm(LayerNorm(EPSILON), "norm", precision.dtype, affine=True, name=name)


class Token(nn.Module):
    """A learnt vector that stands for a token, that of the class or those of removed patches."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, batch: int, length: int) -> jax.Array:
        """Returns [batch, length, features], all alike."""
        init = layers.truncated_normal(0.02, None)
        token_d = weight(self, "embedding", init, ("norm",), (self.features,)).astype(self.dtype)
        return jnp.broadcast_to(token_d[None, None], (batch, length, self.features))


class Block(nn.Module):
    """One layer: x += attention(norm(x)); x += mlp(norm(x)), with exact GELU and biases."""

    num_heads: int
    d_ff: int
    precision: Precision
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # q, k, v -> [b, t, n, h]
    constrain: Constrain
    growth: Growth = BASE
    """The growth of the tower with the size of the model."""

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Returns the residual stream [b, t, d] after the layer."""
        attention_norm = layer_norm(self.precision, "attention_norm")
        mlp_norm = layer_norm(self.precision, "mlp_norm")
        branch = self.growth.branch
        x_btd = x_btd + layers.multiply(self._attention(attention_norm(x_btd)), branch)
        x_btd = x_btd + layers.multiply(self._mlp(mlp_norm(x_btd)), branch)
        return self.constrain(x_btd, ("batch", None, None))

    def _attention(self, x_btd: jax.Array) -> jax.Array:
        b, t, d = x_btd.shape

        def heads(name: str) -> jax.Array:
            part = self._linear(d, ("embed", "heads"), num_fused=3, name=name)
            x_btnh = part(x_btd).reshape(b, t, self.num_heads, d // self.num_heads)
            return self.constrain(x_btnh, ("batch", None, "heads", None))

        out_btnh = self.attend(heads("query"), heads("key"), heads("value"))
        output = self._linear(d, ("heads", "embed"), name="output")
        return output(out_btnh.reshape(b, t, d))

    def _mlp(self, x_btd: jax.Array) -> jax.Array:
        dtype, small = self.precision.dtype, layers.truncated_normal(1e-6, None)
        up = self._linear(self.d_ff, ("embed", "mlp"), bias_init=small, name="up")
        hidden_btf = nn.gelu(up(x_btd).astype(jnp.float32), approximate=False).astype(dtype)
        hidden_btf = self.constrain(hidden_btf, ("batch", None, "mlp"))
        d = x_btd.shape[-1]
        down = self._linear(d, ("mlp", "embed"), bias_init=small, name="down")
        return down(hidden_btf)

    def _linear(self, features: int, axes: tuple[str, str], **options: Any) -> Linear:
        growth = self.growth
        return linear(features, axes, self.precision, role="hidden", growth=growth, **options)


Init = Callable[[jax.Array], Params]
"""The type of a function of a key that returns fresh parameters in their boxes."""


def init_parts(rng: jax.Array, parts: dict[str, Init]) -> Params:
    """Returns fresh parameters of the parts that have any, by name, in their boxes."""
    rngs = jax.random.split(rng, len(parts))
    made = {name: init(key) for (name, init), key in zip(parts.items(), rngs, strict=True)}
    return {name: part for name, part in made.items() if part}


def _init(module: nn.Module, *inputs: jax.Array | int) -> Init:
    return lambda rng: layers.init(module, rng, *inputs)


@dataclass(frozen=True)
class Tower:
    """One half: a linear map of its inputs, a token, positions, equal blocks in a stack, a norm.

    Parameters: {`inputs.name`: {"kernel" [i, d], "bias"}, `token_name`: {"embedding" [d]},
    "positions" if they are stored, "blocks": {"0": stack}, "norm": {"scale", "bias"}, and of the
    decoder "head": {"kernel" [d, p], "bias"}}.
    """

    inputs: Linear
    num_inputs: int
    token_name: str
    positions: Positions
    block: Block
    num_layers: int
    scan: bool
    remat: RematPolicy
    head: Linear | None = None  # only the decoder has one

    def init(self, rng: jax.Array) -> Params:
        """Returns fresh parameters in their boxes."""
        x_btd = jnp.zeros((1, 1, self.width), self.block.precision.dtype)
        parts = {
            self.inputs.name or "": _init(self.inputs, jnp.zeros((1, self.num_inputs))),
            self.token_name: _init(self._token, 1, 1),
            "positions": self.positions.init,
        }
        if self.head is not None:
            parts["head"] = _init(self.head, x_btd)
        # Parameters do not depend on attention, and cuDNN's cannot run for all layers at once.
        layer = _init(self.block.clone(attend=lambda q_btnh, *_: q_btnh), x_btd)

        def init_blocks(rng: jax.Array) -> Params:
            made = stack.init_stack(lambda key, *_: layer(key), rng, self.num_layers, 1)
            return layers.stacked(made)

        return init_parts(rng, parts | {stack.STACK: init_blocks, "norm": _init(self._norm, x_btd)})

    def tokens(
        self, params: Params, x_bki: jax.Array, order_bk: jax.Array | None = None
    ) -> jax.Array:
        """Returns the input of the blocks [b, 1 + l, d], in which the token fills what is left.

        `order_bk` numbers the l patches in the image; None: they are all, in order. The encoder
        takes l patches and lacks the class token, the decoder takes 1 + k features and lacks the
        removed patches.
        """
        x_bkd = layers.apply(self.inputs, params[self.inputs.name or ""], x_bki)
        positions_btd = self.positions(params.get("positions", {}), order_bk)
        num_left = positions_btd.shape[1] - x_bkd.shape[1]
        token_bnd = layers.apply(self._token, params[self.token_name], len(x_bkd), num_left)
        parts = (token_bnd, x_bkd) if self.head is None else (x_bkd, token_bnd)
        x_btd = jnp.concatenate(parts, axis=1) + positions_btd.astype(x_bkd.dtype)
        return self.block.constrain(x_btd, ("batch", None, None))

    def __call__(self, params: Params, x_btd: jax.Array) -> jax.Array:
        """Returns the output of the blocks, normalised."""

        def run_block(x_btd: jax.Array, params: Params) -> jax.Array:
            return layers.apply(self.block, params, x_btd)

        block = layers.remat(run_block, self.remat, scanned=self.scan)
        x_btd = stack.apply_stack(
            lambda x, p, _: block(x, p), x_btd, params[stack.STACK], scan=self.scan
        )
        return layers.apply(self._norm, params["norm"], x_btd)

    def watch(
        self, params: Params, x_btd: jax.Array, look: stack.Look
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns its output, and what is seen of each layer, from the bottom (see `stack`)."""

        def watch_layer(
            x_btd: jax.Array, params: Params, _: int
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            queries_and_keys: list[tuple[jax.Array, jax.Array]] = []

            def watched(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                queries_and_keys.append((q, k))
                return self.block.attend(q, k, v)

            x_btd = layers.apply(self.block.clone(attend=watched), params, x_btd)
            return x_btd, look(x_btd, *queries_and_keys[0], Mask(causal=False))

        x_btd, seen = stack.observe_stack(watch_layer, x_btd, params[stack.STACK])
        return layers.apply(self._norm, params["norm"], x_btd), seen

    def costs(self, num_tokens: int, kernel: AttentionKernel) -> Blocks:
        """Returns the costs of the blocks for one image."""
        num_chunks = -(-num_tokens // QUERY_CHUNK)
        in_chunks = kernel.startswith("xla_blocks") and num_chunks > 1
        itemsize = self.block.precision.dtype.itemsize
        return Blocks(
            num_layers=self.num_layers,
            num_tokens=num_tokens,
            visible_pairs=num_tokens**2,
            all_pairs=num_tokens**2,
            d_model=self.width,
            kv_width=self.width,
            d_ff=self.block.d_ff,
            num_heads=self.block.num_heads,
            num_mlp_kernels=2,
            norm_bytes=2 * self.width * 12,  # thrice in float32
            inner_bytes=3 * 4 * self.block.d_ff,
            norm_after=False,
            query_chunk=-(-num_tokens // num_chunks) if in_chunks else None,
            kernel=kernel,
            remat=self.remat,
            scanned=self.scan,
            itemsize=itemsize,
            stream_itemsize=itemsize,
        )

    @property
    def width(self) -> int:
        """The width of the blocks."""
        return self.inputs.features

    @property
    def _token(self) -> Token:
        return Token(self.width, self.block.precision.dtype)

    @property
    def _norm(self) -> Norm:
        return layer_norm(self.block.precision)
