"""The OLMo decoder, all generations: a causal transformer without biases.

Sources: allenai/OLMo `olmo/model.py` (generations 1 and 2) and the released configs. What differs
between generations is a field of `Decoder`; the published sizes are rows of `models.olmo`.

Shapes: b batch, t positions, d model width, n heads, m key/value heads, h head size, v vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxpretrain.config.errors import InputError
from jaxpretrain.models import layers, masks, stack
from jaxpretrain.models.attention import (
    AttentionChoice,
    AttentionKernel,
    attention,
    resolve_kernel,
)
from jaxpretrain.models.block import Block, Layers
from jaxpretrain.models.contract import (
    Batch,
    Constrain,
    Params,
    Shard,
    unconstrained,
    unsharded,
)
from jaxpretrain.models.losses import cross_entropy
from jaxpretrain.models.matmul import Products, choose_products
from jaxpretrain.models.rotary import Yarn, rope_table


@dataclass(frozen=True)
class Decoder(Layers):
    """A decoder language model of the OLMo family."""

    vocab_size: int = 50280
    """Token ids lie below this."""
    embedding_rows: int = 50304
    """Rows of the embedding and of the head: the vocabulary, padded. Padding rows take part in the
    softmax, as in OLMo, and are never targets."""
    tied_head: bool = False
    """The output projection is the transposed embedding."""
    rope_theta: float = 10000.0
    """Base of the rotary positions."""
    yarn: Yarn | None = None
    """Stretches the rotary positions of layers with full attention over longer contexts."""
    windows: tuple[int | None, ...] = (None,)
    """Sliding windows of the layers in turn, each a number of positions (the query included) or
    none for full attention; OLMo 3 repeats 4096,4096,4096,none."""
    document_end: int | None = None
    """Token id that ends a document: attention stays inside documents. None: it does not."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the objective."""
    loss_denominator: Literal["predictable", "all"] = "predictable"
    """What the loss is averaged over: the tokens that are predicted and count, or all positions, as
    in OLMo's trainer. Evaluation always averages over the former."""
    loss_chunk: int = 512
    """Positions of each sequence whose logits exist at once."""
    attention: AttentionChoice = "auto"
    """Attention kernel; auto takes cuDNN on NVIDIA GPUs in bfloat16 (without documents), splash on
    TPUs and XLA elsewhere."""
    scan_layers: bool = True
    """Fold over the layers (short compilation) or unroll them; the results are the same."""
    remat: layers.RematPolicy = "full"
    """Activations recomputed in the backward pass: none, full (all but block inputs), dots (matrix
    products and attention are kept), attention (only attention's output is kept)."""

    def build(
        self,
        example: Mapping[str, tuple[tuple[int, ...], str]],
        *,
        platform: str,
        constrain: Constrain = unconstrained,
        shard: Shard = unsharded,
    ) -> "DecoderModel":
        """The model for examples {"tokens": ((t,), "int32")} on a platform ("cpu", "gpu", "tpu").

        Raises:
          InputError: the sizes do not fit together.
        """
        self._check()
        ((seq_len,), _) = example["tokens"]
        has_documents = self.document_end is not None
        kernel = resolve_kernel(self.attention, platform, self.dtype, documents=has_documents)
        products = choose_products(platform, self.dtype)
        return DecoderModel(self, seq_len, kernel, products, constrain, shard)

    def _check(self) -> None:
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff")
        for name in (*sizes, "clip_qkv", "init_cutoff", "loss_chunk"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"model.{name}={value}: must be positive")
        if any(window is not None and window < 1 for window in self.windows):
            raise InputError(
                f"model.windows={self.windows}: a window holds the query, so 1 or more"
            )
        if self.document_end is not None and not 0 <= self.document_end < self.vocab_size:
            raise InputError(
                f"model.document_end={self.document_end} is not below "
                f"model.vocab_size={self.vocab_size}"
            )
        if self.yarn is not None and self.yarn.factor < 1.0:
            raise InputError(f"model.yarn.factor={self.yarn.factor}: must be 1 or more")
        kv_heads = self.num_kv_heads or self.num_heads
        for value, by, what in (
            (self.d_model, self.num_heads, "model.d_model by model.num_heads"),
            (self.num_heads, kv_heads, "model.num_heads by model.num_kv_heads"),
            (self.num_layers, len(self.windows), "model.num_layers by the length of model.windows"),
            (self.d_model // self.num_heads, 2, "the head size d_model / num_heads by 2 (rotary)"),
        ):
            if by < 1 or value % by:
                raise InputError(f"cannot divide {what}: {value} / {by}")
        if self.embedding_rows < self.vocab_size:
            raise InputError(
                f"model.embedding_rows={self.embedding_rows} is less than "
                f"model.vocab_size={self.vocab_size}"
            )


class DecoderModel:
    """The decoder bound to a sequence length, an attention kernel and a layout; see `Model`.

    Parameters: {"embed": {"embedding" [v, d]}, "blocks": {position: {"query": {"kernel"}, ...}},
    "final_norm": {"scale" [d]} when norms have parameters, "head": {"kernel" [d, v]} unless tied}.
    """

    def __init__(
        self,
        config: Decoder,
        seq_len: int,
        kernel: AttentionKernel,
        products: Products,
        constrain: Constrain,
        shard: Shard,
    ) -> None:
        self.config = config
        self.seq_len = seq_len
        self.kernel: AttentionKernel = kernel
        self.products = products
        self.constrain = constrain
        self._attend = partial(attention, kernel=kernel, shard=shard)
        self._embedding = layers.Embedding(
            config.embedding_rows,
            config.d_model,
            config.initializer("embed"),
            jnp.dtype(config.residual_dtype or config.dtype),
            constrain,
        )
        self._final_norm = config.make_norm()
        self._head = layers.Linear(
            config.embedding_rows,
            ("embed", "vocab"),
            config.initializer("head"),
            jnp.dtype(config.dtype),
            products,
        )

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """{"tokens": int32 [batch_size, t]}."""
        return {"tokens": jax.ShapeDtypeStruct((batch_size, self.seq_len), jnp.int32)}

    def input_limits(self) -> dict[str, int]:
        """Token ids lie below the true vocabulary size, not below the padded one."""
        return {"tokens": self.config.vocab_size}

    def units_per_example(self) -> tuple[str, int]:
        """Tokens, and how many a sequence holds."""
        return "tokens", self.seq_len

    def init(self, rng: jax.Array) -> Params:
        """Fresh float32 parameters."""
        return self._init(rng)[0]

    def axes(self) -> Params:
        """Logical axis names of each parameter; stacked ones begin with "layers"."""
        axes: Params = {}

        def record(rng: jax.Array) -> Params:
            params, names = self._init(rng)
            axes.update(names)
            return params

        jax.eval_shape(record, jax.random.key(0))
        return axes

    def _init(self, rng: jax.Array) -> tuple[Params, Params]:
        embed_rng, blocks_rng, head_rng = jax.random.split(rng, 3)
        x_btd = jnp.zeros((1, 1, self.config.d_model), jnp.dtype(self.config.dtype))
        block_axes: Params = {}

        def init_layer(key: jax.Array, layer: jax.Array, position: int) -> Params:
            block = self._block(position, layer)
            params, names = stack.unbox(block.init(key, x_btd, self._rope(position, 1)))
            is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
            block_axes[str(position)] = jax.tree.map(
                lambda leaf: ("layers", *leaf), names, is_leaf=is_names
            )
            return params

        parts: dict[str, tuple[Params, Params]] = {
            "embed": stack.unbox(self._embedding.init(embed_rng, jnp.zeros((1, 1), jnp.int32))),
            "final_norm": stack.unbox(self._final_norm.init(head_rng, x_btd)),
        }
        if not self.config.tied_head:
            parts["head"] = stack.unbox(self._head.init(head_rng, x_btd))
        params = {name: part[0] for name, part in parts.items() if part[0]}
        axes = {name: part[1] for name, part in parts.items() if part[0]}
        pattern = len(self.config.windows)
        params["blocks"] = stack.init_stack(init_layer, blocks_rng, self.config.num_layers, pattern)
        axes["blocks"] = block_axes
        return params, axes

    def hidden(self, params: Params, tokens_bt: jax.Array) -> jax.Array:
        """Final normalised hidden states [b, t, d] in the compute dtype."""
        x_btd = layers.apply(self._embedding, params["embed"], tokens_bt)
        x_btd = self.constrain(x_btd, ("batch", None, None))
        documents_bt = None
        if self.config.document_end is not None:
            documents_bt = masks.documents(tokens_bt, self.config.document_end)

        def make_block(position: int) -> Callable[[jax.Array, Params], jax.Array]:
            block, rope = self._block(position), self._rope(position, tokens_bt.shape[1])

            def run(x_btd: jax.Array, params: Params) -> jax.Array:
                return layers.apply(block, params, x_btd, rope, documents_bt)

            return layers.remat(run, self.config.remat, scanned=self.config.scan_layers)

        blocks = [make_block(p) for p in range(len(self.config.windows))]
        x_btd = stack.apply_stack(
            lambda x, p, position: blocks[position](x, p),
            x_btd,
            params["blocks"],
            scan=self.config.scan_layers,
        )
        return layers.apply(self._final_norm, params.get("final_norm", {}), x_btd)

    def logits(self, params: Params, tokens_bt: jax.Array) -> jax.Array:
        """Float32 logits [b, t, v] over the padded vocabulary."""
        x_btd = self.hidden(params, tokens_bt)
        kernel_dv = self.output_kernel(params)
        return jnp.einsum("btd,dv->btv", x_btd, kernel_dv, preferred_element_type=jnp.float32)

    def loss(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Next-token cross-entropy, summed over the predictable positions (all but the last).

        `batch["mask"]` bool [b, t], when there, says which tokens count where they are predicted,
        and `batch["weight"]` [b] weighs sequences (0 for padding). Sums are in nats.
        """
        del rng  # the model draws nothing
        tokens_bt = batch["tokens"]
        x_btd = self.hidden(params, tokens_bt)
        example_b = batch.get("weight", jnp.ones(tokens_bt.shape[0], jnp.float32))
        # The last position has no target; it keeps its place so that lengths stay round.
        targets_bt = jnp.roll(tokens_bt, -1, axis=1)
        weights_bt = jnp.ones(tokens_bt.shape, jnp.float32).at[:, -1].set(0.0)
        weights_bt = weights_bt * example_b[:, None]
        if "mask" in batch:
            weights_bt = weights_bt * jnp.roll(batch["mask"], -1, axis=1)
        objective, ce_b, z_b = cross_entropy(
            x_btd,
            self.output_kernel(params),
            targets_bt,
            weights_bt,
            z_loss=self.config.z_loss,
            chunk=self.config.loss_chunk,
            products=self.products,
        )
        weight_b = jnp.sum(weights_bt, axis=1)
        count_b = weight_b
        if self.config.loss_denominator == "all":
            count_b = example_b * tokens_bt.shape[1]
        return objective, jnp.sum(count_b), {"loss": ce_b, "z": z_b, "weight": weight_b}

    def flops_per_example(self, *, causal: bool) -> float:
        """6 per weight and token for the matrix products (head counted, embedding look-up not),
        12 per attended pair and channel: 2 each for scores and values, times 3 with backward.
        """
        c, t = self.config, self.seq_len
        block = 2 * c.d_model * (c.d_model + c.kv_width) + 3 * c.d_model * c.d_ff
        weights = c.num_layers * block + c.d_model * c.embedding_rows
        groups = c.num_layers // len(c.windows)
        pairs = groups * sum(masks.num_visible_pairs(t, window, causal) for window in c.windows)
        return 6.0 * weights * t + 12.0 * c.d_model * pairs

    def describe(self) -> list[str]:
        """What is active: sizes, dtypes, attention kernel, layers."""
        c = self.config
        windows = "" if set(c.windows) == {None} else f", windows {c.windows}"
        yarn = "" if c.yarn is None else f", YaRN x {c.yarn.factor:g} on full attention"
        inside = ""
        if c.document_end is not None:
            inside = f", inside documents (ended by token {c.document_end})"
        return [
            f"decoder: {c.num_layers} layers x {c.d_model}, {c.num_heads} heads, "
            f"d_ff {c.d_ff}, {c.embedding_rows} embedding rows, {self.seq_len} tokens",
            f"compute {c.dtype} ({self.products.name} products), residual stream "
            f"{c.residual_dtype or c.dtype}, parameters float32, "
            f"loss in chunks of {c.loss_chunk} positions, z-loss {c.z_loss:g}",
            f"attention {self.kernel} (asked: {c.attention}){windows}{yarn}{inside}, "
            f"layers {'scanned' if c.scan_layers else 'unrolled'}, remat {c.remat}",
        ]

    def _block(self, position: int, layer: jax.Array | int = 0) -> Block:
        attend = partial(self._attend, window=self.config.windows[position])
        return Block(self.config, attend, self.products, self.constrain, layer)

    def _rope(self, position: int, num_positions: int) -> tuple[jax.Array, jax.Array]:
        c = self.config
        yarn = c.yarn if c.windows[position] is None else None
        return rope_table(num_positions, c.head_dim, c.rope_theta, yarn)

    def output_kernel(self, params: Params) -> jax.Array:
        """[d, v] in the compute dtype: the head, or the embedding that it is tied to."""
        kernel_dv = (
            params["embed"]["embedding"].T if self.config.tied_head else params["head"]["kernel"]
        )
        # Gathered once over the data axes, not once a chunk.
        return self.constrain(kernel_dv.astype(self.config.dtype), (None, "vocab"))
