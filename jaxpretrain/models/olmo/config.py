"""The sizes and choices of the OLMo decoder, all generations, and how its weights begin.

Sources: allenai/OLMo `olmo/model.py` (generations 1 and 2), `olmo/initialization.py`, and the
released configs.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.ranges import Between, Depth, NonNegative, NumIds, Positive, Width
from jaxpretrain.config.schema import Mark
from jaxpretrain.models.choices import AttentionChoice, RematChoice, require_divisible
from jaxpretrain.models.layers import Initializer, LayerNorm, RMSNorm, truncated_normal
from jaxpretrain.models.olmo.rotary import Rope, Yarn
from jaxpretrain.models.scaling import Factors, Growth, Role, Scaled
from jaxpretrain.models.stack import is_stacked

Std = Annotated[float, Between(0, 100, "(]")]
"""The type of a field that holds a standard deviation."""

Cutoff = Annotated[float, Positive] | None
"""The type of a field that holds a number of standard deviations."""


@dataclass(frozen=True)
class Normal:
    """One standard deviation for all weights (OLMo 2 and 3)."""

    std: Std = 0.02
    """The standard deviation."""
    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""


@dataclass(frozen=True)
class Mitchell:
    """Standard deviations that follow from the number of inputs and the depth (OLMo 1)."""

    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""


@dataclass(frozen=True)
class FullMegatron:
    """One standard deviation, scaled down by sqrt(2 layers) for weights of the residual stream."""

    std: Std = 0.02
    """The standard deviation before scaling; that of the head is 1 / sqrt(inputs) instead."""
    cutoff: Cutoff = 3.0
    """Draws beyond this many standard deviations are drawn again; none: not cut."""


def initial_std(
    init: Normal | Mitchell | FullMegatron,
    name: str,
    fan_in: float,
    layer: jax.Array | int,
    num_layers: int,
) -> float | jax.Array:
    """Returns the standard deviation of a parameter with `fan_in` inputs; `layer` counts from 0."""
    is_residual = name in ("output", "down")  # its product is added to the residual stream
    if isinstance(init, Normal):
        return init.std
    if isinstance(init, Mitchell):
        return (2 * fan_in * (layer + 1)) ** -0.5 if is_residual else fan_in**-0.5
    if name == "head":
        return fan_in**-0.5
    return init.std / (2 * num_layers) ** 0.5 if is_residual else init.std


@dataclass(frozen=True)
class DecoderConfig(Scaled):
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
    reduce_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype to which gradients of weights are rounded before they are summed over devices.
    Bfloat16 halves the bytes and rounds at every device; microbatches and copies of the model are
    summed in float32 anyway. OLMo's trainers: float32."""
    residual_dtype: Literal["bfloat16", "float32"] | None = None
    """The dtype of the residual stream; none: `dtype`. OLMo without FSDP keeps float32."""
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
    """The kernel; auto: cuDNN on GPUs in bfloat16 (no documents), splash on TPUs, else XLA."""
    scan_layers: Annotated[bool, Mark.NO_EFFECT] = True
    """Fold over the layers (short compilation) or unroll them; the results are the same."""
    remat: Annotated[RematChoice, Mark.NO_EFFECT] = "full"
    """Activations recomputed in the backward pass: none, full (all but block inputs), dots (matrix
    products and attention are kept), attention (only its output is kept), auto: the fastest."""

    @property
    def head_dim(self) -> int:
        """The number of channels of a head."""
        return self.d_model // self.num_heads

    @property
    def kv_width(self) -> int:
        """The number of channels of all keys, or of all values."""
        return (self.num_kv_heads or self.num_heads) * self.head_dim

    @property
    def growth(self) -> Growth:
        """The size of the model relative to the one that its settings are meant for."""
        return self.growth_of(self.d_model, self.num_heads, self.num_layers)

    def factors(self, name: str) -> Factors:
        """Returns the factors of the settings of a parameter, such as `blocks/0/query/kernel`."""
        role: Role = "input"
        if name.endswith("/kernel"):
            role = "hidden" if is_stacked(name) else "output"
        return self.growth.factors(role, in_layer=is_stacked(name))

    def initializer(self, name: str, layer: jax.Array | int = 0) -> Initializer:
        """Returns what draws the weight of that name in a layer, counted from the bottom."""
        growth, num_layers = self.growth, self.num_layers
        fan_in = growth.base(self.d_ff if name == "down" else self.d_model)
        if self.scaling == "completep" and self.base_depth is not None:
            layer, num_layers = layer * self.base_depth // num_layers, self.base_depth
        std = initial_std(self.init, name, fan_in, layer, num_layers)
        if name not in ("embed", "head"):
            std = std * growth.factors("hidden").deviation
        return truncated_normal(std, self.init.cutoff)

    def check(self) -> None:
        """Raises InputError where sizes do not fit together."""
        validate(self, "model")
        self.growth  # noqa: B018  refuses a base that does not fit
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
