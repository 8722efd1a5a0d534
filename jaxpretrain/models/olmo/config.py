"""The sizes and choices of the OLMo decoder, all generations.

Sources: allenai/OLMo `olmo/model.py` (generations 1 and 2) and the released configs.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.ranges import Between, Depth, NonNegative, NumIds, Positive, Width
from jaxpretrain.config.schema import Mark
from jaxpretrain.models.choices import AttentionChoice, RematChoice, require_divisible
from jaxpretrain.models.layers import Initializer, truncated_normal
from jaxpretrain.models.norms import LayerNorm, RMSNorm
from jaxpretrain.models.olmo.initial_weights import FullMegatron, Mitchell, Normal, initial_std
from jaxpretrain.models.olmo.rotary import Rope, Yarn


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes and choices of a decoder language model of the OLMo family."""

    d_model: Width = 2048
    """The width of the residual stream."""
    num_layers: Depth = 16
    """The number of blocks."""
    num_heads: Width = 16
    """The number of query heads; d_model / num_heads is the head size."""
    num_kv_heads: Width | None = None
    """The number of key and value heads (grouped queries); none: as many as query heads."""
    d_ff: Width = 8192
    """The inner width of SwiGLU, one of its halves (OLMo's mlp_hidden_size counts both)."""
    norm: LayerNorm | RMSNorm = LayerNorm()
    """The norm of the residual stream, and of queries and keys with `qk_norm`."""
    norm_position: Literal["before", "after"] = "before"
    """before: the input of attention and MLP is normalised. after: their output (OLMo 2 and 3)."""
    qk_norm: bool = False
    """Normalise queries and keys over their full projected width, before the split into heads."""
    clip_qkv: Annotated[float, Positive] | None = None
    """Clamp queries, keys and values to +- this value."""
    init: Normal | Mitchell | FullMegatron = Mitchell()
    """OLMo's initialisation of the weights."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype of activations and matrix products; parameters and sums are float32."""
    residual_dtype: Literal["bfloat16", "float32"] | None = None
    """The dtype of the residual stream; none: that of `dtype`. OLMo's trainer keeps float32 without
    FSDP."""
    vocab_size: NumIds = 50280
    """The number of token ids."""
    embedding_rows: NumIds = 50304
    """The rows of the embedding and of the head: the vocabulary, padded. Padding rows take part in
    the softmax, as in OLMo, and are never targets."""
    tied_head: bool = False
    """The output projection is the transposed embedding."""
    rope: Rope | Yarn = Rope()
    """The rotary positions. YaRN stretches those of layers with full attention alone."""
    windows: tuple[Annotated[int, Between(1, 2**24)] | None, ...] = (None,)
    """Sliding windows of the layers in turn, each a number of positions (the query included) or
    none for full attention; OLMo 3 repeats 4096,4096,4096,none."""
    document_end: Annotated[int, NonNegative] | None = None
    """The token id that ends a document: attention stays inside documents. None: it does not."""
    z_loss: Annotated[float, Between(0, 1)] = 0.0
    """The weight of the squared log-normaliser in the objective."""
    loss_denominator: Literal["predictable", "all"] = "predictable"
    """The positions that the loss is averaged over: the tokens that are predicted and count, or
    all, as in OLMo's trainer. Evaluation always averages over the former."""
    attention: Annotated[AttentionChoice, Mark.NO_EFFECT] = "auto"
    """The attention kernel; auto takes cuDNN on NVIDIA GPUs in bfloat16 (without documents), splash
    on TPUs and XLA elsewhere."""
    scan_layers: Annotated[bool, Mark.NO_EFFECT] = True
    """Fold over the layers (short compilation) or unroll them; the results are the same."""
    remat: Annotated[RematChoice, Mark.NO_EFFECT] = "full"
    """Activations recomputed in the backward pass: none, full (all but block inputs), dots (matrix
    products and attention are kept), attention (only attention's output is kept); auto: what is
    fastest of those that fit the devices, found before the run."""

    @property
    def head_dim(self) -> int:
        """The number of channels of a head."""
        return self.d_model // self.num_heads

    @property
    def kv_width(self) -> int:
        """The number of channels of all keys, or of all values."""
        return (self.num_kv_heads or self.num_heads) * self.head_dim

    def initializer(self, name: str, layer: jax.Array | int = 0) -> Initializer:
        """Returns what draws the weight of that name in a layer, counted from the bottom."""
        fan_in = self.d_ff if name == "down" else self.d_model
        std = initial_std(self.init, name, fan_in, layer, self.num_layers)
        return truncated_normal(std, self.init.cutoff)

    def check(self) -> None:
        """Raises InputError where sizes do not fit together."""
        validate(self, "model")
        if self.document_end is not None and self.document_end >= self.vocab_size:
            raise InputError(
                f"model.document_end={self.document_end} is not below "
                f"model.vocab_size={self.vocab_size}"
            )
        kv_heads = self.num_kv_heads or self.num_heads
        require_divisible(
            (self.d_model, self.num_heads, "model.d_model by model.num_heads"),
            (self.num_heads, kv_heads, "model.num_heads by model.num_kv_heads"),
            (self.num_layers, len(self.windows), "model.num_layers by the length of model.windows"),
            (self.head_dim, 2, "the head size d_model / num_heads by 2 (rotary)"),
        )
        if isinstance(self.rope, Yarn):
            self.rope.check(self.head_dim // 2)
        if self.embedding_rows < self.vocab_size:
            raise InputError(
                f"model.embedding_rows={self.embedding_rows} is less than "
                f"model.vocab_size={self.vocab_size}"
            )
