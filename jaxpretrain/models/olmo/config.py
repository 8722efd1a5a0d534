"""The sizes and choices of the OLMo decoder, all generations.

Sources: allenai/OLMo `olmo/model.py` (generations 1 and 2) and the released configs.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.ranges import Between, NonNegative, NumIds, Positive, above
from jaxpretrain.models.choices import AttentionChoice, RematChoice
from jaxpretrain.models.olmo.block import Layers
from jaxpretrain.models.olmo.rotary import Yarn


@dataclass(frozen=True)
class DecoderConfig(Layers):
    """The sizes and choices of a decoder language model of the OLMo family."""

    vocab_size: NumIds = 50280
    """Token ids lie below this."""
    embedding_rows: NumIds = 50304
    """Rows of the embedding and of the head: the vocabulary, padded. Padding rows take part in the
    softmax, as in OLMo, and are never targets."""
    tied_head: bool = False
    """The output projection is the transposed embedding."""
    rope_theta: Annotated[float, above(1)] = 10000.0
    """Base of the rotary positions."""
    yarn: Yarn | None = None
    """Stretches the rotary positions of layers with full attention over longer contexts."""
    windows: tuple[Annotated[int, Between(1, 2**24)] | None, ...] = (None,)
    """Sliding windows of the layers in turn, each a number of positions (the query included) or
    none for full attention; OLMo 3 repeats 4096,4096,4096,none."""
    document_end: Annotated[int, NonNegative] | None = None
    """Token id that ends a document: attention stays inside documents. None: it does not."""
    z_loss: Annotated[float, Between(0, 1)] = 0.0
    """Weight of the squared log-normaliser in the objective."""
    loss_denominator: Literal["predictable", "all"] = "predictable"
    """What the loss is averaged over: the tokens that are predicted and count, or all positions, as
    in OLMo's trainer. Evaluation always averages over the former."""
    loss_chunk: Annotated[int, Positive] = 512
    """Positions of each sequence whose logits exist at once."""
    attention: AttentionChoice = "auto"
    """Attention kernel; auto takes cuDNN on NVIDIA GPUs in bfloat16 (without documents), splash on
    TPUs and XLA elsewhere."""
    scan_layers: bool = True
    """Fold over the layers (short compilation) or unroll them; the results are the same."""
    remat: RematChoice = "full"
    """Activations recomputed in the backward pass: none, full (all but block inputs), dots (matrix
    products and attention are kept), attention (only attention's output is kept); auto: what is
    fastest of those that fit the devices, found before the run."""

    def check(self) -> None:
        """Raises InputError when sizes do not fit together."""
        validate(self, "model")
        if self.document_end is not None and self.document_end >= self.vocab_size:
            raise InputError(
                f"model.document_end={self.document_end} is not below "
                f"model.vocab_size={self.vocab_size}"
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
        if self.yarn is not None:
            self.yarn.check(self.d_model // self.num_heads // 2, self.rope_theta)
        if self.embedding_rows < self.vocab_size:
            raise InputError(
                f"model.embedding_rows={self.embedding_rows} is less than "
                f"model.vocab_size={self.vocab_size}"
            )
