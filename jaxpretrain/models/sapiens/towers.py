"""The two halves of a masked autoencoder: patches to features, and features to pixels.

Shapes: b batch, t tokens, l patches of an image, k seen and m removed ones (l = k + m), p values of
a patch, d encoder width, e decoder width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpretrain.models import layers, probe, stack
from jaxpretrain.models.attention_xla import QUERY_CHUNK
from jaxpretrain.models.choices import AttentionKernel, RematPolicy
from jaxpretrain.models.contract import Params
from jaxpretrain.models.costs import Blocks
from jaxpretrain.models.masks import Mask
from jaxpretrain.models.norms import Norm
from jaxpretrain.models.sapiens.positions import Positions
from jaxpretrain.models.sapiens.vit import Block, Token, layer_norm, linear, uniform

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
    """Equal blocks in a stack, then a norm.

    Parameters: {"blocks": {"0": stack}, "norm": {"scale", "bias"}}.
    """

    block: Block
    d_model: int
    num_layers: int
    scan: bool
    remat: RematPolicy

    @property
    def parts(self) -> dict[str, Init]:
        """Returns the functions that make its parameters."""
        return {stack.STACK: self._init_blocks, "norm": _init(self._norm, self._example)}

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
            d_model=self.d_model,
            kv_width=self.d_model,
            d_ff=self.block.d_ff,
            num_heads=self.block.num_heads,
            num_mlp_kernels=2,
            norm_bytes=2 * self.d_model * 12,  # thrice in float32
            inner_bytes=3 * 4 * self.block.d_ff,
            norm_after=False,
            query_chunk=-(-num_tokens // num_chunks) if in_chunks else None,
            kernel=kernel,
            remat=self.remat,
            scanned=self.scan,
            itemsize=itemsize,
            stream_itemsize=itemsize,
        )

    def __call__(self, params: Params, x_btd: jax.Array) -> jax.Array:
        """Returns the output of the blocks, normalised."""

        def run_block(x_btd: jax.Array, params: Params) -> jax.Array:
            return layers.apply(self.block, params, x_btd)

        block = layers.remat(run_block, self.remat, scanned=self.scan)
        x_btd = stack.apply_stack(
            lambda x, p, _: block(x, p), x_btd, params[stack.STACK], scan=self.scan
        )
        return layers.apply(self._norm, params["norm"], x_btd)

    def signals(self, params: Params, x_btd: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns its output and the signals of its layers (see `probe`)."""

        def look(
            x_btd: jax.Array, params: Params, _: int
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            logits = []

            def watched(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                logits.append(probe.largest_logit(q, k, Mask(causal=False)))
                return self.block.attend(q, k, v)

            x_btd = layers.apply(self.block.clone(attend=watched), params, x_btd)
            return x_btd, probe.seen(x_btd, logits[0])

        x_btd, seen = stack.observe_stack(look, x_btd, params[stack.STACK])
        return layers.apply(self._norm, params["norm"], x_btd), seen

    @property
    def _norm(self) -> Norm:
        return layer_norm(self.block.precision)

    @property
    def _example(self) -> jax.Array:
        return jnp.zeros((1, 1, self.d_model), self.block.precision.dtype)

    def _init_blocks(self, rng: jax.Array) -> Params:
        # Parameters do not depend on attention, and cuDNN's cannot run for all layers at once.
        init = _init(self.block.clone(attend=lambda q_btnh, *_: q_btnh), self._example)
        return layers.stacked(stack.init_stack(lambda key, *_: init(key), rng, self.num_layers, 1))


class Encoder:
    """The half that turns patches into features.

    Parameters: {"patch": {"kernel" [p, d], "bias"}, "cls": {"embedding" [d]}, "positions" if they
    are stored, "blocks", "norm"}.
    """

    def __init__(self, num_values: int, tower: Tower, positions: Positions) -> None:
        d, precision = tower.d_model, tower.block.precision
        # torch's default for a bias; "norm" is an axis that stays whole on every device.
        bias_init = uniform(num_values**-0.5)
        self._patch = linear(d, ("norm", "embed"), precision, bias_init=bias_init)
        self._cls = Token(d, precision.dtype)
        self.tower = tower
        self._positions = positions
        self._num_values = num_values

    def init(self, rng: jax.Array) -> Params:
        """Returns fresh parameters in their boxes."""
        parts = {
            "patch": _init(self._patch, jnp.zeros((1, self._num_values))),
            "cls": _init(self._cls, 1, 1),
            "positions": self._positions.init,
        }
        return init_parts(rng, parts | self.tower.parts)

    def tokens(
        self, params: Params, patches_bkp: jax.Array, order_bk: jax.Array | None = None
    ) -> jax.Array:
        """Returns the input of the tower [b, 1 + k, d], with the class token first.

        `order_bk` numbers these patches in the image; None: they are all, in order.
        """
        x_bkd = layers.apply(self._patch, params["patch"], patches_bkp)
        cls_b1d = layers.apply(self._cls, params["cls"], len(x_bkd), 1)
        positions_btd = self._positions(params.get("positions", {}), order_bk)
        x_btd = jnp.concatenate([cls_b1d, x_bkd], axis=1) + positions_btd.astype(x_bkd.dtype)
        return self.tower.block.constrain(x_btd, ("batch", None, None))


class PixelDecoder:
    """The half that turns features of seen patches into the pixels of removed ones.

    Parameters: {"embed": {"kernel" [d, e], "bias"}, "mask": {"embedding" [e]}, "positions" if they
    are stored, "blocks", "norm", "head": {"kernel" [e, p], "bias"}}.
    """

    def __init__(
        self, encoder_width: int, num_values: int, tower: Tower, positions: Positions
    ) -> None:
        e, precision = tower.d_model, tower.block.precision
        self._embed = linear(e, ("embed", "norm"), precision)
        self._mask = Token(e, precision.dtype)
        self._head = linear(num_values, ("embed", "norm"), precision)
        self.tower = tower
        self._positions = positions
        self._encoder_width = encoder_width

    def init(self, rng: jax.Array) -> Params:
        """Returns fresh parameters in their boxes."""
        parts = {
            "embed": _init(self._embed, jnp.zeros((1, self._encoder_width))),
            "mask": _init(self._mask, 1, 1),
            "positions": self._positions.init,
            "head": _init(self._head, jnp.zeros((1, self.tower.d_model))),
        }
        return init_parts(rng, parts | self.tower.parts)

    def tokens(self, params: Params, features_btd: jax.Array, order_bl: jax.Array) -> jax.Array:
        """Returns the input of the tower [b, 1 + l, e] from features [b, 1 + k, d] of k patches.

        `order_bl` numbers all patches of the image, the k seen ones first.
        """
        x_bte = layers.apply(self._embed, params["embed"], features_btd)
        batch, num_seen_tokens, _ = x_bte.shape
        num_removed = 1 + order_bl.shape[1] - num_seen_tokens
        mask_bme = layers.apply(self._mask, params["mask"], batch, num_removed)
        positions_bte = self._positions(params.get("positions", {}), order_bl)
        x_bte = jnp.concatenate([x_bte, mask_bme], axis=1) + positions_bte.astype(x_bte.dtype)
        return self.tower.block.constrain(x_bte, ("batch", None, None))

    def pixels(self, params: Params, x_bte: jax.Array) -> jax.Array:
        """Returns float32 predictions [b, m, p] from the output of the tower for m patches."""
        return layers.apply(self._head, params["head"], x_bte).astype(jnp.float32)
