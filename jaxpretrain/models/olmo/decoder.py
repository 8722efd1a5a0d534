"""The OLMo decoder, all generations, and what it computes: losses, hidden states and caches.

Sources: allenai/OLMo `olmo/model.py` (generations 1 and 2) and the released configs. What differs
between generations is a field of `DecoderConfig`; the published sizes are in `variants`.

Shapes: b batch, t positions, d model width, n heads, m key/value heads, h head size, v vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxpretrain.models import layers, masks, scaling, stack
from jaxpretrain.models.attention import attend_cached, attention, resolve_kernel
from jaxpretrain.models.choices import AttentionKernel, RematPolicy, require_policy
from jaxpretrain.models.contract import (
    Batch,
    Branches,
    ByRows,
    Constrain,
    LanguageModel,
    Params,
    Shard,
    Spread,
    in_one,
    unconstrained,
    unsharded,
)
from jaxpretrain.models.costs import Bytes, Costs
from jaxpretrain.models.layers import Precision, choose_precision
from jaxpretrain.models.losses import CHUNK, cross_entropy, next_tokens, token_losses
from jaxpretrain.models.olmo.block import Attend, Block, RopeTable, block_costs, make_norm
from jaxpretrain.models.olmo.config import DecoderConfig
from jaxpretrain.models.olmo.decode import Cache, Stack, empty_cache
from jaxpretrain.models.olmo.rotary import Rope, Yarn, rope_table

_Carry = tuple[jax.Array, dict[str, Stack]]
"""The residual stream, keys and values that go from layer to layer with a cache."""


_KINDS: dict[scaling.Role, str] = {
    "input": "embedding and norms",
    "hidden": "matrices of layers",
    "output": "head",
}

LossSums = tuple[jax.Array, ...]
"""The objective [1], and the cross-entropy and z of each sequence, [b]."""


@dataclass(frozen=True)
class Decoder(DecoderConfig):
    """A decoder language model of the OLMo family."""

    def build(
        self,
        example: Mapping[str, tuple[tuple[int, ...], str]],
        *,
        platform: str,
        constrain: Constrain = unconstrained,
        shard: Shard = unsharded,
        by_rows: ByRows = in_one,
    ) -> "DecoderModel":
        """Returns the model for {"tokens": ((t,), "int32")}; InputError if sizes do not fit."""
        self.check()
        ((seq_len,), _) = example["tokens"]
        has_documents = self.document_end is not None
        kernel = resolve_kernel(self.attention, platform, self.dtype, documents=has_documents)
        precision = choose_precision(platform, self.dtype, self.reduce_dtype)
        return DecoderModel(self, seq_len, kernel, precision, constrain, shard, by_rows)


class DecoderModel(LanguageModel):
    """The decoder bound to a sequence length, an attention kernel and a layout; see `Model`.

    Parameters: {"embed": {"embedding" [v, d]}, "blocks": {position: {"query": {"kernel"}, ...}},
    "final_norm": {"scale" [d]} when norms have parameters, "head": {"kernel" [d, v]} unless tied}.
    """

    def __init__(
        self,
        config: DecoderConfig,
        seq_len: int,
        kernel: AttentionKernel,
        precision: Precision,
        constrain: Constrain,
        shard: Shard,
        by_rows: ByRows,
    ) -> None:
        self.config = config
        self._remat: RematPolicy = require_policy(config.remat)
        self.seq_len = seq_len
        self.kernel: AttentionKernel = kernel
        self.precision = precision
        self.constrain = constrain
        self._by_rows = by_rows
        self._attend = partial(attention, kernel=kernel, shard=shard)
        self._embedding = layers.Embedding(
            config.embedding_rows,
            config.d_model,
            config.initializer("embed"),
            jnp.dtype(config.residual_dtype or config.dtype),
            constrain,
        )
        self._final_norm = make_norm(config)
        self._head = layers.Linear(
            config.embedding_rows, ("embed", "vocab"), precision, config.initializer("head")
        )

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns {"tokens": int32 [batch_size, t]}."""
        return {"tokens": jax.ShapeDtypeStruct((batch_size, self.seq_len), jnp.int32)}

    def input_limits(self) -> dict[str, int]:
        """Returns the true vocabulary size, not the padded one, for `tokens`."""
        return {"tokens": self.config.vocab_size}

    @property
    def factors(self) -> scaling.FactorsOf | None:
        """The factors of the settings of each parameter, unless scaling is standard."""
        return None if self.config.scaling == "standard" else self.config.factors

    def units_per_example(self) -> tuple[str, int]:
        """Returns "tokens" and the length of a sequence."""
        return "tokens", self.seq_len

    def init(self, rng: jax.Array) -> Params:
        """Returns fresh float32 parameters."""
        return layers.unbox(self._init(rng))

    def axes(self) -> Params:
        """Returns the logical axes of each parameter; stacked ones begin with "layers"."""
        return layers.axes_of(self._init)

    def _init(self, rng: jax.Array) -> Params:
        """Returns fresh parameters in their boxes."""
        embed_rng, blocks_rng, head_rng = jax.random.split(rng, 3)
        x_btd = jnp.zeros((1, 1, self.config.d_model), jnp.dtype(self.config.dtype))
        tokens_bt = positions_bt = jnp.zeros((1, 1), jnp.int32)

        def init_layer(key: jax.Array, layer: jax.Array, position: int) -> Params:
            rope = self._rope(position, positions_bt)
            return layers.init(self._block(layer), key, x_btd, rope, lambda q, *_: (q, None))

        pattern = len(self.config.windows)
        blocks = stack.init_stack(init_layer, blocks_rng, self.config.num_layers, pattern)
        params = {
            "embed": layers.init(self._embedding, embed_rng, tokens_bt),
            stack.STACK: layers.stacked(blocks),
            "final_norm": layers.init(self._final_norm, head_rng, x_btd),
        }
        if not self.config.tied_head:
            params["head"] = layers.init(self._head, head_rng, x_btd)
        return {name: part for name, part in params.items() if part}

    def hidden(
        self, params: Params, tokens_bt: jax.Array, branches: Branches | None = None
    ) -> jax.Array:
        """Returns the final normalised hidden states [b, t, d] in the compute dtype."""
        windows = self.config.windows
        x_btd, documents_bt = self._embed(params, tokens_bt, branches)
        positions_bt = jnp.arange(tokens_bt.shape[1])[None]
        if branches is not None:
            positions_bt = branches.positions_bt

        def make_block(position: int) -> Callable[[jax.Array, Params], jax.Array]:
            block, rope = self._block(), self._rope(position, positions_bt)
            mask = masks.Mask(True, windows[position], documents_bt, branches)

            def run(x_btd: jax.Array, params: Params) -> jax.Array:
                attend = lambda q, k, v: (self._attend(q, k, v, mask), None)  # noqa: E731
                return layers.apply(block, params, x_btd, rope, attend)[0]

            return layers.remat(run, self._remat, scanned=self.config.scan_layers)

        blocks = [make_block(p) for p in range(len(windows))]
        x_btd = stack.apply_stack(
            lambda x, p, position: blocks[position](x, p),
            x_btd,
            params[stack.STACK],
            scan=self.config.scan_layers,
        )
        return layers.apply(self._final_norm, params.get("final_norm", {}), x_btd)

    def prefill(self, params: Params, tokens_bt: jax.Array, length: int) -> tuple[jax.Array, Cache]:
        """Returns `hidden` and a cache of these tokens with room for `length` of each row."""
        b, t = tokens_bt.shape
        windows = self.config.windows
        places_bt = jnp.broadcast_to(jnp.arange(t), (b, t))
        cache = empty_cache(self.config, b, length, self.constrain)
        cache = cache.write_tokens(tokens_bt, places_bt)
        x_btd, documents_bt = self._embed(params, tokens_bt)

        def look(position: int, own: Stack, layer: jax.Array) -> Attend:
            mask = masks.Mask(True, windows[position], documents_bt)
            return lambda q, k, v: (self._attend(q, k, v, mask), own.write(layer, k, v, places_bt))

        return self._run_with(cache, params, x_btd, places_bt, look)

    def extend(
        self, params: Params, tokens_bt: jax.Array, cache: Cache, first_b: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Returns `hidden` of tokens from position `first_b` on, and the cache with them."""
        places_bt = first_b[:, None] + jnp.arange(tokens_bt.shape[1])[None]
        cache = cache.write_tokens(tokens_bt, places_bt)
        end, windows = self.document_end, self.config.windows
        visible = [cache.visible(places_bt, window, end) for window in windows]

        def look(position: int, own: Stack, layer: jax.Array) -> Attend:
            def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Stack]:
                written = own.write(layer, k, v, places_bt)
                keys, values = (stacked[layer] for stacked in written)
                out = attend_cached(q, keys, values, visible[position], kernel=self.kernel)
                return out, written

            return attend

        x_btd, _ = self._embed(params, tokens_bt)
        return self._run_with(cache, params, x_btd, places_bt, look)

    def _run_with(
        self,
        cache: Cache,
        params: Params,
        x_btd: jax.Array,
        places_bt: jax.Array,
        look: Callable[[int, Stack, jax.Array], Attend],
    ) -> tuple[jax.Array, Cache]:
        """Runs the layers; `look(position, own, layer)` attends for one and keeps its part."""
        block = self._block()
        ropes = [self._rope(p, places_bt) for p in range(len(self.config.windows))]

        def run(carry: _Carry, part: Params, position: int) -> _Carry:
            x_btd, kept = carry
            attend = look(position, kept[str(position)], part["layer"])
            x_btd, own = layers.apply(block, part["params"], x_btd, ropes[position], attend)
            return x_btd, kept | {str(position): own}

        parts = {
            name: {"params": stacked, "layer": jnp.arange(len(cache.stacks[name].keys_lbmsh))}
            for name, stacked in params[stack.STACK].items()
        }
        x_btd, kept = stack.apply_stack(
            run, (x_btd, cache.stacks), parts, scan=self.config.scan_layers
        )
        x_btd = layers.apply(self._final_norm, params.get("final_norm", {}), x_btd)
        return x_btd, cache._replace(stacks=kept)

    def signals(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """Returns `attention_logit/blocks` and `activation_rms/blocks` (see `stack`)."""
        return stack.by_stack("", self._watch(params, batch["tokens"], stack.signals)[1])

    def coordinates(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        """Returns `activation/blocks`, `attention_logit/blocks` (see `stack`) and `logits`."""
        x_btd, seen = self._watch(params, batch["tokens"], stack.coordinates)
        x_btd = layers.apply(self._final_norm, params.get("final_norm", {}), x_btd)
        return stack.by_stack("", seen) | {"logits": self._project(params, x_btd)}

    def _watch(
        self, params: Params, tokens_bt: jax.Array, look: stack.Look
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the residual stream [b, t, d] and what is seen of each layer, bottom first."""
        windows = self.config.windows
        x_btd, documents_bt = self._embed(params, tokens_bt)
        positions_bt = jnp.arange(x_btd.shape[1])[None]

        def watch_layer(
            x_btd: jax.Array, params: Params, position: int
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            mask = masks.Mask(True, windows[position], documents_bt)
            attend = lambda q, k, v: (self._attend(q, k, v, mask), (q, k))  # noqa: E731
            rope = self._rope(position, positions_bt)
            x_btd, (q, k) = layers.apply(self._block(), params, x_btd, rope, attend)
            return x_btd, look(x_btd, q, k, mask)

        return stack.observe_stack(watch_layer, x_btd, params[stack.STACK])

    def logits(self, params: Params, tokens_bt: jax.Array) -> jax.Array:
        """Returns float32 logits [b, t, v] over the padded vocabulary."""
        return self._project(params, self.hidden(params, tokens_bt))

    def loss(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns the sums of next-token cross-entropy over all positions but the last.

        `batch["mask"]` bool [b, t], when there, says which tokens count where they are predicted,
        and `batch["weight"]` [b] weighs sequences (0 for padding). Sums are in nats.
        """
        tokens_bt = batch["tokens"]
        x_btd = self.hidden(params, tokens_bt)
        example_b, targets_bt, weights_bt = next_tokens(batch)

        def losses(spread: Spread, kernel_dv: jax.Array, *arrays: jax.Array) -> LossSums:
            x_btd, targets_bt, weights_bt = arrays
            objective, *sums = cross_entropy(
                x_btd,
                kernel_dv,
                targets_bt,
                weights_bt,
                z_loss=self.config.z_loss,
                products=self.precision.products,
                reduce_dtype=self.precision.reduce_dtype,
                spread=spread,
            )
            return objective[None], *sums

        arrays = x_btd, targets_bt, weights_bt
        kernel_dv = self._head_kernel(params)
        objective, ce_b, z_b = self._by_rows(losses, kernel_dv, ("embed", "vocab"), arrays)
        weight_b = jnp.sum(weights_bt, axis=1)
        count_b = weight_b
        if self.config.loss_denominator == "all":
            count_b = example_b * tokens_bt.shape[1]
        return jnp.sum(objective), jnp.sum(count_b), {"loss": ce_b, "z": z_b, "weight": weight_b}

    def token_losses(self, params: Params, batch: Batch) -> jax.Array:
        """Returns the cross-entropy of each token where it is predicted and counts, else 0."""
        _, targets_bt, weights_bt = next_tokens(batch)
        x_btd = self.hidden(params, batch["tokens"])
        kernel_dv, products = self.output_kernel(params), self.precision.products
        losses_bt = token_losses(x_btd, kernel_dv, targets_bt, weights_bt, products=products)
        return jnp.roll(losses_bt, 1, axis=1)

    @property
    def document_end(self) -> int | None:
        """The token that ends a document, where attention stays inside documents."""
        return self.config.document_end

    def costs(self) -> Costs:
        """Returns the costs of the layers, and of `head`; the embedding look-up costs nothing."""
        c, t = self.config, self.seq_len
        blocks = block_costs(c, t, self.kernel, self._remat)
        # Of one chunk, logits in float32 and their gradients; of all, the last norm and gradients.
        logits = min(CHUNK, t) * c.embedding_rows * (4 + blocks.itemsize)
        # Logits are written and read twice, their gradients written and read twice.
        passed = t * c.embedding_rows * 3 * (4 + blocks.itemsize)
        return Costs(
            blocks=(blocks,),
            ends={"head": 6.0 * t * c.d_model * c.embedding_rows},
            ends_kept=Bytes(),
            loss=Bytes(t * c.d_model * (8 + 2 * blocks.itemsize), logits),
            loss_traffic=Bytes(split=passed),
        )

    def describe(self) -> list[str]:
        """Returns lines on sizes, dtypes, attention kernel and layers."""
        c = self.config
        windows = "" if set(c.windows) == {None} else f", windows {c.windows}"
        yarn = ""
        if isinstance(c.rope, Yarn):
            yarn = f", YaRN x {c.rope.factor:g} on full attention"
        inside = f", inside documents (ended by token {c.document_end})"
        inside = "" if c.document_end is None else inside
        return [
            f"decoder: {c.num_layers} layers x {c.d_model}, {c.num_heads} heads, "
            f"d_ff {c.d_ff}, {c.embedding_rows} embedding rows, {self.seq_len} tokens",
            f"compute {c.dtype} ({self.precision.products.name} products), residual stream "
            f"{c.residual_dtype or c.dtype}, parameters float32, "
            f"loss in chunks of {CHUNK} positions, z-loss {c.z_loss:g}",
            f"attention {self.kernel} (asked: {c.attention}){windows}{yarn}{inside}, "
            f"layers {'scanned' if c.scan_layers else 'unrolled'}, remat {c.remat}",
            *scaling.describe(c, c.growth, _KINDS),
        ]

    def _embed(
        self, params: Params, tokens_bt: jax.Array, branches: Branches | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the first layer's input [b, t, d], and documents' numbers where they count."""
        x_btd = layers.apply(self._embedding, params["embed"], tokens_bt)
        x_btd = self.constrain(x_btd, ("batch", None, None))
        if self.config.document_end is None:
            return x_btd, None
        return x_btd, masks.documents(tokens_bt, self.config.document_end, branches)

    def _block(self, layer: jax.Array | int = 0) -> Block:
        return Block(self.config, self.precision, self.constrain, layer)

    def _rope(self, position: int, positions_bt: jax.Array) -> RopeTable:
        c = self.config
        rope = c.rope if c.windows[position] is None else Rope(c.rope.theta)
        return rope_table(positions_bt, c.head_dim, rope)

    def output_kernel(self, params: Params) -> jax.Array:
        """Returns the head [d, v] in the compute dtype, or the embedding that it is tied to."""
        kernel_dv = self._head_kernel(params).astype(self.config.dtype)
        return self.constrain(kernel_dv, (None, "vocab"))

    def _project(self, params: Params, x_btd: jax.Array) -> jax.Array:
        kernel_dv = self.output_kernel(params)
        return jnp.einsum("btd,dv->btv", x_btd, kernel_dv, preferred_element_type=jnp.float32)

    def _head_kernel(self, params: Params) -> jax.Array:
        """Returns the float32 matrix [d, v] that turns hidden states into logits."""
        tied = self.config.tied_head
        kernel_dv = params["embed"]["embedding"].T if tied else params["head"]["kernel"]
        return layers.multiply(kernel_dv, self.config.growth.factors("output").product)
