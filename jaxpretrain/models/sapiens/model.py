"""The masked autoencoder of Sapiens: a vision transformer that predicts removed patches.

Sources: MAE (arXiv 2111.06377) and Sapiens (arXiv 2408.12569) with its pretraining configs.

A quarter of an image's patches goes through the encoder; the decoder sees their features and, for
each removed patch, a mask token, and predicts the removed pixels. Tokens without positions have no
order, so patches stay in the shuffled order in which they were drawn, seen ones first, and only
positions and targets are gathered: nothing that carries a gradient is ever moved.

Shapes: b batch, h and w pixels, l patches of an image, k seen and m removed ones (l = k + m),
p values of a patch, d encoder width, e decoder width; see `models.patches`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxpretrain.models import choices, layers, stack
from jaxpretrain.models.attention import attention, resolve_kernel
from jaxpretrain.models.contract import (
    Batch,
    ByRows,
    Constrain,
    ImageModel,
    Params,
    Shard,
    in_one,
    unconstrained,
    unsharded,
)
from jaxpretrain.models.costs import Bytes, Costs
from jaxpretrain.models.layers import Precision, choose_precision
from jaxpretrain.models.masks import Mask
from jaxpretrain.models.sapiens import patches
from jaxpretrain.models.sapiens.config import MLP_RATIO, VitMaeConfig
from jaxpretrain.models.sapiens.patches import Positions
from jaxpretrain.models.sapiens.towers import Block, Tower, init_parts, linear, uniform
from jaxpretrain.models.scaling import FactorsOf, Role
from jaxpretrain.models.scaling import describe as describe_scaling


@dataclass(frozen=True)
class VitMae(VitMaeConfig):
    """A masked autoencoder of images."""

    def build(
        self,
        example: Mapping[str, tuple[tuple[int, ...], str]],
        *,
        platform: str,
        constrain: Constrain = unconstrained,
        shard: Shard = unsharded,
        by_rows: ByRows = in_one,  # its head is small
    ) -> "VitMaeModel":
        """Returns the model for {"images": ((h, w, 3), "uint8")}; InputError for wrong sizes."""
        ((height, width, channels), _) = example["images"]
        self.check(height, width)
        kernel = resolve_kernel(self.attention, platform, self.dtype)
        precision = choose_precision(platform, self.dtype, self.reduce_dtype)
        return VitMaeModel(self, (height, width, channels), kernel, precision, constrain, shard)


_KINDS: dict[Role, str] = {
    "input": "patches, tokens, norms and biases of the encoder",
    "hidden": "matrices of the encoder's layers",
    "output": "features of the encoder for the decoder",
    "fixed": "the rest of the decoder, which stays as it is",
}


class VitMaeModel(ImageModel):
    """The model bound to an image size, kernel and layout; parameters: {"encoder", "decoder"}."""

    def __init__(
        self,
        config: VitMae,
        image_shape: tuple[int, int, int],
        kernel: choices.AttentionKernel,
        precision: Precision,
        constrain: Constrain,
        shard: Shard,
    ) -> None:
        self.config = config
        self.image_shape = image_shape
        self.kernel: choices.AttentionKernel = kernel
        self.precision = precision
        self.constrain = constrain
        height, width, channels = image_shape
        self.grid = height // config.patch_size, width // config.patch_size
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_seen = config.num_seen(self.num_patches)
        self._values = config.patch_size**2 * channels
        c, d, e = config, config.d_model, config.decoder_d_model
        attend = partial(attention, mask=Mask(causal=False), kernel=kernel, shard=shard)
        block = partial(Block, precision=precision, attend=attend, constrain=constrain)
        positions = partial(Positions, c.positions, self.grid)
        tower = partial(Tower, scan=c.scan_layers, remat=choices.require_policy(c.remat))
        # torch's default for a bias; "norm" is an axis that stays whole on every device.
        bias = uniform(self._values**-0.5)
        growth = c.growth
        self._encoder = tower(
            linear(
                d,
                ("norm", "embed"),
                precision,
                bias_init=bias,
                role="input",
                growth=growth,
                name="patch",
            ),
            num_inputs=self._values,
            token_name="cls",
            positions=positions(d),
            block=block(c.num_heads, c.d_ff, growth=growth),
            num_layers=c.num_layers,
        )
        self._head = linear(self._values, ("embed", "norm"), precision)
        self._decoder = tower(
            linear(e, ("embed", "norm"), precision, role="output", growth=growth, name="embed"),
            num_inputs=d,
            token_name="mask",
            positions=positions(e),
            block=block(c.decoder_num_heads, MLP_RATIO * e),
            num_layers=c.decoder_num_layers,
            head=self._head,
        )
        self._blocks = (
            self._encoder.costs(1 + self.num_seen, kernel),
            self._decoder.costs(1 + self.num_patches, kernel),
        )

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns {"images": uint8 [batch_size, h, w, 3]}, RGB."""
        return {"images": jax.ShapeDtypeStruct((batch_size, *self.image_shape), jnp.uint8)}

    def input_limits(self) -> dict[str, int]:
        """Returns {}: every byte is a pixel."""
        return {}

    @property
    def factors(self) -> FactorsOf | None:
        """The factors of the settings of each parameter, unless scaling is standard."""
        return None if self.config.scaling == "standard" else self.config.factors

    def units_per_example(self) -> tuple[str, int]:
        """Returns "images" and 1."""
        return "images", 1

    def init(self, rng: jax.Array) -> Params:
        """Returns fresh float32 parameters."""
        return layers.unbox(self._init(rng))

    def axes(self) -> Params:
        """Returns the logical axes of each parameter; stacked ones begin with "layers"."""
        return layers.axes_of(self._init)

    def loss(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns the mean squared errors of removed patches, summed over these patches.

        `batch["row"]` [b] numbers the examples (by default from 0): an example's mask follows from
        `rng` and its number alone. `loss_predict_zero` is the loss of predicting zeros, which with
        normalised patches is each patch's true mean.
        """
        images_bhwc = batch["images"]
        orders_bl = self._draw_orders(batch, rng)
        error_b, zero_b = self.errors(params, images_bhwc, orders_bl)
        weight_b = batch.get("weight", jnp.ones(images_bhwc.shape[0], jnp.float32))
        error_b, zero_b = error_b * weight_b, zero_b * weight_b
        weight_b = weight_b * (self.num_patches - self.num_seen)
        sums = {"loss": error_b, "loss_predict_zero": zero_b, "weight": weight_b}
        return jnp.sum(error_b), jnp.sum(weight_b), jax.lax.stop_gradient(sums)

    def errors(
        self, params: Params, images_bhwc: jax.Array, orders_bl: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the squared errors of the predictions, and of predicting zero; float32 [b].

        Each is a mean over the values of a patch, summed over the removed patches. `orders_bl`
        holds permutations of the patches: the first `num_seen` are seen, the others removed.
        """
        errors = self._patch_errors(params, images_bhwc, orders_bl)
        error_b, zero_b = (jnp.sum(error_bm, axis=1) for error_bm in errors)
        return error_b, zero_b

    def patch_losses(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        """Returns the squared error of each removed patch, 0 for seen ones; float32 [b, l]."""
        orders_bl = self._draw_orders(batch, rng)
        error_bm, _ = self._patch_errors(params, batch["images"], orders_bl)
        nothing_bl1 = jnp.zeros((*orders_bl.shape, 1), jnp.float32)
        removed_bm = orders_bl[:, self.num_seen :]
        return patches.put(nothing_bl1, removed_bm, error_bm[:, :, None])[:, :, 0]

    def encode(self, params: Params, images_bhwc: jax.Array) -> jax.Array:
        """Returns features [b, 1 + l, d] of class token and patches; reads only the encoder."""
        x_btd = self._encoder.tokens(params["encoder"], self._patches(images_bhwc))
        return self._encoder(params["encoder"], x_btd)

    def signals(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """Returns the signals of both towers; `rng` and rows mask the images as in `loss`."""
        return self._watch(params, batch, rng, stack.signals)[1]

    def coordinates(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """Returns `activation` and `attention_logit` of both towers (see `stack`), and `logits`.

        These are the predicted values of the removed patches, float32 [b, m, p].
        """
        x_bte, seen = self._watch(params, batch, rng, stack.coordinates)
        x_bme = x_bte[:, 1 + self.num_seen :]
        predicted_bmp = layers.apply(self._head, params["decoder"]["head"], x_bme)
        return seen | {"logits": predicted_bmp.astype(jnp.float32)}

    def _watch(
        self, params: Params, batch: Batch, rng: jax.Array, look: stack.Look
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the output of the decoder [b, 1 + l, e], and what is seen of all layers."""
        patches_blp = self._patches(batch["images"])
        orders_bl = self._draw_orders(batch, rng)
        seen_bk = orders_bl[:, : self.num_seen]
        seen_bkp = patches.take(patches_blp, seen_bk)
        x_btd = self._encoder.tokens(params["encoder"], seen_bkp, seen_bk)
        x_btd, encoder = self._encoder.watch(params["encoder"], x_btd, look)
        x_bte = self._decoder.tokens(params["decoder"], x_btd, orders_bl)
        x_bte, decoder = self._decoder.watch(params["decoder"], x_bte, look)
        return x_bte, stack.by_stack("encoder", encoder) | stack.by_stack("decoder", decoder)

    def reconstruct(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the images, the seen patches on grey, and the predictions among seen patches.

        Masks are those of `loss`. With normalised patches, the model does not know a patch's
        brightness and contrast: the true ones are put in.
        """
        size, width = self.config.patch_size, self.image_shape[1]
        patches_blp = self._patches(batch["images"])
        orders_bl = self._draw_orders(batch, rng)
        removed_bm = orders_bl[:, self.num_seen :]
        predicted_bmp = self._predict(params, patches_blp, orders_bl)
        if self.config.normalize_patches:
            mean, deviation = patches.patch_moments(patches.take(patches_blp, removed_bm))
            predicted_bmp = predicted_bmp * deviation + mean
        grey_bmp = jnp.zeros_like(predicted_bmp)

        def picture(x_blp: jax.Array) -> jax.Array:
            return patches.to_unit(patches.unpatchify(x_blp, size, width))

        return (
            picture(patches_blp),
            picture(patches.put(patches_blp, removed_bm, grey_bmp)),
            picture(patches.put(patches_blp, removed_bm, predicted_bmp)),
        )

    def costs(self) -> Costs:
        """Returns the costs of the layers, `patches`, `embed` (encoder to decoder) and `head`.

        As in the reference, all patches are projected and predicted; here, projection and head skip
        the patches that do not matter, which saves half a percent at most.
        """
        c, encoder, decoder = self.config, *self._blocks
        patch_values = self.num_patches * self._values
        return Costs(
            blocks=self._blocks,
            ends={
                "patches": 6.0 * patch_values * c.d_model,
                "embed": 6.0 * encoder.num_tokens * c.d_model * c.decoder_d_model,
                "head": 6.0 * decoder.num_tokens * c.decoder_d_model * self._values,
            },
            # The pixels as inputs, and as targets in float32.
            ends_kept=Bytes(patch_values * (encoder.itemsize + 4)),
            # Predictions in float32 and their gradient; the features and theirs, in float32 too.
            loss=Bytes(
                patch_values * (4 + encoder.itemsize)
                + decoder.num_tokens * c.decoder_d_model * (8 + 2 * decoder.itemsize)
            ),
            # Bytes become numbers, normalised patches and targets; predictions meet them.
            loss_traffic=Bytes(patch_values * 32),
        )

    def describe(self) -> list[str]:
        """Returns lines on sizes, masks, dtypes, attention kernel and layers."""
        c = self.config
        height, width, _ = self.image_shape
        head_dims = c.d_model // c.num_heads, c.decoder_d_model // c.decoder_num_heads
        is_padded = self.kernel == "cudnn" and any(size % 8 for size in head_dims)
        padded = " (padded to a multiple of 8)" if is_padded else ""
        return [
            f"masked autoencoder: encoder {c.num_layers} layers x {c.d_model}, {c.num_heads} heads,"
            f" d_ff {c.d_ff}; decoder {c.decoder_num_layers} layers x {c.decoder_d_model}, "
            f"{c.decoder_num_heads} heads",
            f"images {height} x {width}, {self.num_patches} patches of {c.patch_size}: "
            f"{self.num_seen} seen, {self.num_patches - self.num_seen} predicted"
            f"{', each normalised' if c.normalize_patches else ''}; positions {c.positions}",
            f"compute {c.dtype} ({self.precision.products.name} products), parameters and loss "
            "float32",
            f"attention {self.kernel} (asked: {c.attention}), full, head sizes {head_dims[0]} and "
            f"{head_dims[1]}{padded}, layers {'scanned' if c.scan_layers else 'unrolled'}, "
            f"remat {c.remat}",
            *describe_scaling(c, c.growth, _KINDS),
        ]

    def _init(self, rng: jax.Array) -> Params:
        return init_parts(rng, {"encoder": self._encoder.init, "decoder": self._decoder.init})

    def _draw_orders(self, batch: Batch, rng: jax.Array) -> jax.Array:
        rows_b = batch.get("row", jnp.arange(batch["images"].shape[0]))
        return patches.draw_orders(rng, rows_b, self.num_patches)

    def _patch_errors(
        self, params: Params, images_bhwc: jax.Array, orders_bl: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the squared errors of the predictions, and of predicting zero; float32 [b, m]."""
        patches_blp = self._patches(images_bhwc)
        target_bmp = patches.take(patches_blp, orders_bl[:, self.num_seen :])
        if self.config.normalize_patches:
            mean, deviation = patches.patch_moments(target_bmp)
            target_bmp = (target_bmp - mean) / deviation
        predicted_bmp = self._predict(params, patches_blp, orders_bl)

        def error(x_bmp: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(x_bmp), axis=2)

        return error(predicted_bmp - target_bmp), error(target_bmp)

    def _patches(self, images_bhwc: jax.Array) -> jax.Array:
        return patches.patchify(patches.normalize(images_bhwc), self.config.patch_size)

    def _predict(self, params: Params, patches_blp: jax.Array, orders_bl: jax.Array) -> jax.Array:
        """Returns float32 predictions [b, m, p] of the removed patches, in their order."""
        seen_bk = orders_bl[:, : self.num_seen]
        seen_bkp = patches.take(patches_blp, seen_bk)
        x_btd = self._encoder.tokens(params["encoder"], seen_bkp, seen_bk)
        features_btd = self._encoder(params["encoder"], x_btd)
        x_bte = self._decoder.tokens(params["decoder"], features_btd, orders_bl)
        x_bme = self._decoder(params["decoder"], x_bte)[:, 1 + self.num_seen :]
        return layers.apply(self._head, params["decoder"]["head"], x_bme).astype(jnp.float32)
