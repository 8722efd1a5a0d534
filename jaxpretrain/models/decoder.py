"""The OLMo decoder, all generations: a causal transformer without biases.

Sources: allenai/OLMo `olmo/model.py` (generations 1 and 2) and the released configs. What differs
between generations is a field of `Decoder`; the published sizes are rows of `models.olmo`.

Shapes: b batch, t positions, d model width, n heads, m key/value heads, h head size, v vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpretrain.config.errors import InputError
from jaxpretrain.models import layers, stack
from jaxpretrain.models.attention import (
    AttentionChoice,
    AttentionKernel,
    attended_pairs,
    attention,
    resolve_kernel,
)
from jaxpretrain.models.contract import Batch, Constrain, Params, unconstrained
from jaxpretrain.models.losses import cross_entropy
from jaxpretrain.models.matmul import Products, choose_products


@dataclass(frozen=True)
class Decoder:
    """A decoder language model of the OLMo family."""

    vocab_size: int = 50280
    """Token ids lie below this."""
    embedding_rows: int = 50304
    """Rows of the embedding and of the head: the vocabulary, padded. Padding rows take part in the
    softmax, as in OLMo, and are never targets."""
    d_model: int = 2048
    """Width of the residual stream."""
    num_layers: int = 16
    """Blocks."""
    num_heads: int = 16
    """Query heads; d_model / num_heads is the head size."""
    num_kv_heads: int | None = None
    """Key and value heads (grouped queries); none: as many as query heads."""
    d_ff: int = 8192
    """Inner width of SwiGLU, one of its halves (OLMo's mlp_hidden_size counts both)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """layernorm: without parameters (OLMo 1). rmsnorm: with a scale (OLMo 2 and 3)."""
    norm_epsilon: float = 1e-5
    """Added to the variance or mean square."""
    norm_position: Literal["before", "after"] = "before"
    """before: the input of attention and MLP is normalised. after: their output (OLMo 2 and 3)."""
    qk_norm: bool = False
    """Normalise queries and keys over their full projected width, before the split into heads."""
    clip_qkv: float | None = None
    """Clamp queries, keys and values to +- this value."""
    rope_theta: float = 10000.0
    """Base of the rotary positions."""
    windows: tuple[int | None, ...] = (None,)
    """Sliding windows of the layers in turn, each a number of positions (the query included) or
    none for full attention; OLMo 3 repeats 4096,4096,4096,none."""
    tied_head: bool = False
    """The output projection is the transposed embedding."""
    init: Literal["normal", "mitchell", "full_megatron"] = "mitchell"
    """OLMo's initialisations: normal (all std init_std), mitchell (std by fan-in and depth, OLMo 1)
    and full_megatron (residual outputs scaled down by sqrt(2 layers))."""
    init_std: float = 0.02
    """Standard deviation of normal and full_megatron."""
    init_cutoff: float | None = 3.0
    """Draws beyond this many standard deviations are redrawn; none: not cut."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the objective."""
    loss_chunk: int = 512
    """Positions of each sequence whose logits exist at once."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of activations and matrix products; parameters and sums are float32."""
    attention: AttentionChoice = "auto"
    """Attention kernel; auto takes cuDNN on NVIDIA GPUs in bfloat16 and XLA elsewhere."""
    scan_layers: bool = True
    """Fold over the layers (short compilation) or unroll them; the results are the same."""
    remat: layers.RematPolicy = "full"
    """Activations recomputed in the backward pass: none, full (all but block inputs), dots (matrix
    products are kept), attention (only attention's output is kept)."""

    def build(
        self,
        example: Mapping[str, tuple[tuple[int, ...], str]],
        *,
        platform: str,
        constrain: Constrain = unconstrained,
    ) -> "DecoderModel":
        """The model for examples {"tokens": ((t,), "int32")} on a platform ("cpu", "gpu", "tpu").

        Raises:
          InputError: the sizes do not fit together.
        """
        self._check()
        ((seq_len,), _) = example["tokens"]
        kernel = resolve_kernel(self.attention, platform, self.dtype)
        products = choose_products(platform, self.dtype)
        return DecoderModel(self, seq_len, kernel, products, constrain)

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


class Block(nn.Module):
    """One layer: x += attention(x); x += mlp(x), with norms before or after as configured."""

    config: Decoder
    window: int | None
    kernel: AttentionKernel
    products: Products
    constrain: Constrain
    layer: jax.Array | int = 0  # position from the bottom; only initialisation looks at it

    @nn.compact
    def __call__(self, x_btd: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        """[b, t, d] -> [b, t, d]; `rope` is the (sin, cos) table of the t positions."""
        if self.config.norm_position == "before":
            x_btd = x_btd + self._attention(self._norm("attention_norm")(x_btd), rope)
            x_btd = x_btd + self._mlp(self._norm("mlp_norm")(x_btd))
        else:
            x_btd = x_btd + self._norm("attention_norm")(self._attention(x_btd, rope))
            x_btd = x_btd + self._norm("mlp_norm")(self._mlp(x_btd))
        return self.constrain(x_btd, ("batch", None, None))

    def _attention(self, x_btd: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        c = self.config
        b, t, d = x_btd.shape
        head_dim, kv_heads = d // c.num_heads, c.num_kv_heads or c.num_heads
        q = self._linear("query", d, ("embed", "heads"))(x_btd)
        k = self._linear("key", kv_heads * head_dim, ("embed", "heads"))(x_btd)
        v = self._linear("value", kv_heads * head_dim, ("embed", "heads"))(x_btd)
        if c.clip_qkv is not None:
            q, k, v = (jnp.clip(a, -c.clip_qkv, c.clip_qkv) for a in (q, k, v))
        if c.qk_norm:
            q = self._norm("query_norm", axis="heads")(q)
            k = self._norm("key_norm", axis="heads")(k)
        q_btnh = layers.rotate(q.reshape(b, t, c.num_heads, head_dim), rope)
        k_btmh = layers.rotate(k.reshape(b, t, kv_heads, head_dim), rope)
        v_btmh = v.reshape(b, t, kv_heads, head_dim)
        split = ("batch", None, "heads", None)
        q_btnh, k_btmh, v_btmh = (self.constrain(a, split) for a in (q_btnh, k_btmh, v_btmh))
        out_btnh = attention(q_btnh, k_btmh, v_btmh, kernel=self.kernel, window=self.window)
        return self._linear("output", d, ("heads", "embed"))(out_btnh.reshape(b, t, d))

    def _mlp(self, x_btd: jax.Array) -> jax.Array:
        gate_btf = self._linear("gate", self.config.d_ff, ("embed", "mlp"))(x_btd)
        up_btf = self._linear("up", self.config.d_ff, ("embed", "mlp"))(x_btd)
        gate32_btf, up32_btf = gate_btf.astype(jnp.float32), up_btf.astype(jnp.float32)
        hidden_btf = (nn.silu(gate32_btf) * up32_btf).astype(x_btd.dtype)
        hidden_btf = self.constrain(hidden_btf, ("batch", None, "mlp"))
        return self._linear("down", x_btd.shape[-1], ("mlp", "embed"))(hidden_btf)

    def _norm(self, name: str, axis: str = "norm") -> layers.Norm:
        c = self.config
        return layers.Norm(c.norm, c.norm_epsilon, axis, jnp.dtype(c.dtype), name=name)

    def _linear(self, name: str, features: int, axes: tuple[str, str]) -> layers.Linear:
        c = self.config
        init = layers.truncated_normal(_init_std(c, name, self.layer), c.init_cutoff)
        dtype = jnp.dtype(c.dtype)
        return layers.Linear(features, axes, init, dtype, self.products, name=name)


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
    ) -> None:
        self.config = config
        self.seq_len = seq_len
        self.kernel: AttentionKernel = kernel
        self.products = products
        self.constrain = constrain
        dtype, cutoff = jnp.dtype(config.dtype), config.init_cutoff
        self._embedding = layers.Embedding(
            config.embedding_rows,
            config.d_model,
            layers.truncated_normal(_init_std(config, "embed", 0), cutoff),
            dtype,
            constrain,
        )
        self._final_norm = layers.Norm(config.norm, config.norm_epsilon, "norm", dtype)
        self._head = layers.Linear(
            config.embedding_rows,
            ("embed", "vocab"),
            layers.truncated_normal(_init_std(config, "head", 0), cutoff),
            dtype,
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
            params, names = stack.unbox(block.init(key, x_btd, self._rope(1)))
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
        rope = self._rope(tokens_bt.shape[1])

        def run_layer(x_btd: jax.Array, block_params: Params, position: int) -> jax.Array:
            return layers.apply(self._block(position), block_params, x_btd, rope)

        blocks = [
            layers.remat(
                partial(run_layer, position=p),
                self.config.remat,
                scanned=self.config.scan_layers,
            )
            for p in range(len(self.config.windows))
        ]
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
        kernel_dv = self._output_kernel(params)
        return jnp.einsum("btd,dv->btv", x_btd, kernel_dv, preferred_element_type=jnp.float32)

    def loss(
        self, params: Params, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Next-token cross-entropy, summed over the predictable positions (all but the last).

        `batch["weight"]` [b], when there, weighs sequences (0 for padding). Sums are in nats.
        """
        del rng  # the model draws nothing
        tokens_bt = batch["tokens"]
        x_btd = self.hidden(params, tokens_bt)
        # The last position has no target; it keeps its place so that lengths stay round.
        targets_bt = jnp.roll(tokens_bt, -1, axis=1)
        weights_bt = jnp.ones(tokens_bt.shape, jnp.float32).at[:, -1].set(0.0)
        if "weight" in batch:
            weights_bt = weights_bt * batch["weight"][:, None]
        objective, ce_b, z_b = cross_entropy(
            x_btd,
            self._output_kernel(params),
            targets_bt,
            weights_bt,
            z_loss=self.config.z_loss,
            chunk=self.config.loss_chunk,
            products=self.products,
        )
        weight_b = jnp.sum(weights_bt, axis=1)
        return objective, jnp.sum(weight_b), {"loss": ce_b, "z": z_b, "weight": weight_b}

    def flops_per_example(self, *, causal: bool) -> float:
        """6 per weight and token for the matrix products (head counted, embedding look-up not),
        12 per attended pair and channel: 2 each for scores and values, times 3 with backward.
        """
        c, t = self.config, self.seq_len
        kv_width = (c.num_kv_heads or c.num_heads) * (c.d_model // c.num_heads)
        block = 2 * c.d_model * (c.d_model + kv_width) + 3 * c.d_model * c.d_ff
        weights = c.num_layers * block + c.d_model * c.embedding_rows
        groups = c.num_layers // len(c.windows)
        pairs = groups * sum(attended_pairs(t, window, causal) for window in c.windows)
        return 6.0 * weights * t + 12.0 * c.d_model * pairs

    def describe(self) -> list[str]:
        """What is active: sizes, dtypes, attention kernel, layers."""
        c = self.config
        windows = "" if set(c.windows) == {None} else f", windows {c.windows}"
        return [
            f"decoder: {c.num_layers} layers x {c.d_model}, {c.num_heads} heads, "
            f"d_ff {c.d_ff}, {c.embedding_rows} embedding rows, {self.seq_len} tokens",
            f"compute {c.dtype} ({self.products.name} products), parameters float32, "
            f"loss in chunks of {c.loss_chunk} positions, z-loss {c.z_loss:g}",
            f"attention {self.kernel} (asked: {c.attention}){windows}, "
            f"layers {'scanned' if c.scan_layers else 'unrolled'}, remat {c.remat}",
        ]

    def _block(self, position: int, layer: jax.Array | int = 0) -> Block:
        window = self.config.windows[position]
        return Block(self.config, window, self.kernel, self.products, self.constrain, layer)

    def _rope(self, num_positions: int) -> tuple[jax.Array, jax.Array]:
        head_dim = self.config.d_model // self.config.num_heads
        return layers.rope_table(num_positions, head_dim, self.config.rope_theta)

    def _output_kernel(self, params: Params) -> jax.Array:
        kernel_dv = (
            params["embed"]["embedding"].T if self.config.tied_head else params["head"]["kernel"]
        )
        # Gathered once over the data axes, not once a chunk.
        return self.constrain(kernel_dv.astype(self.config.dtype), (None, "vocab"))


def _init_std(config: Decoder, name: str, layer: jax.Array | int) -> float | jax.Array:
    """Standard deviation of a weight's initialisation (OLMo `olmo/initialization.py`)."""
    if config.init == "normal":
        return config.init_std
    residual = name in ("output", "down")
    if config.init == "full_megatron":
        if name == "head":
            return config.d_model**-0.5
        return config.init_std / (2 * config.num_layers) ** 0.5 if residual else config.init_std
    fan_in = config.d_ff if name == "down" else config.d_model
    return (2 * fan_in * (layer + 1)) ** -0.5 if residual else fan_in**-0.5
