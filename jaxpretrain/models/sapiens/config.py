"""The sizes and choices of the masked autoencoder, and the settings that follow its size.

Sources: MAE (arXiv 2111.06377) and Sapiens (arXiv 2408.12569) with its pretraining configs.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.config.ranges import Between, Depth, Width
from jaxpretrain.config.schema import Mark
from jaxpretrain.models import choices
from jaxpretrain.models.sapiens.patches import PositionsKind
from jaxpretrain.models.scaling import Factors, Growth, Role, Scaled
from jaxpretrain.models.stack import is_stacked

MLP_RATIO = 4
"""The inner width of the decoder's MLPs over its width, in every published size."""


@dataclass(frozen=True)
class VitMaeConfig(Scaled):
    """The sizes and choices of a masked autoencoder of images; the defaults are Sapiens 0.3B.

    With `scaling`, the encoder is what grows; the decoder stays as it is, as in all of Sapiens.
    """

    patch_size: Annotated[Width, Mark.LOSS] = 16
    """The side of a patch in pixels; it divides height and width."""
    d_model: Width = 1024
    """The width of the encoder."""
    num_layers: Depth = 24
    """The number of blocks of the encoder."""
    num_heads: Width = 16
    """The number of heads of the encoder; d_model / num_heads is the head size."""
    d_ff: Width = 4096
    """The inner width of the encoder's MLPs."""
    decoder_d_model: Width = 512
    """The width of the decoder; its MLPs are four times as wide."""
    decoder_num_layers: Depth = 8
    """The number of blocks of the decoder."""
    decoder_num_heads: Width = 16
    """The number of heads of the decoder."""
    mask_ratio: Annotated[float, Between(0, 1, "()"), Mark.LOSS] = 0.75
    """The share of an image's patches that is removed and predicted; seen ones are rounded down."""
    normalize_patches: Annotated[bool, Mark.LOSS] = True
    """Predict each patch with its own mean subtracted and divided by its own deviation."""
    positions: PositionsKind = "sincos"
    """The positions of patches. sincos: Sapiens' fixed table, computed when it is used. stored: a
    checkpoint's own table, kept beside the parameters as `positions/constant`, which is never
    updated; a fresh one holds the sincos table."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype of activations and matrix products; parameters, pixels and loss are float32."""
    reduce_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype to which gradients of weights are rounded before they are summed over devices.
    Bfloat16 halves the bytes and rounds at every device; microbatches and copies of the model are
    summed in float32 anyway. Sapiens: float32."""
    attention: Annotated[choices.AttentionChoice, Mark.NO_EFFECT] = "auto"
    """The attention kernel; auto: cuDNN on NVIDIA GPUs in bfloat16, splash on TPUs, else XLA."""
    scan_layers: Annotated[bool, Mark.NO_EFFECT] = True
    """Fold over the layers (short compilation) or unroll them; the results are the same."""
    remat: Annotated[choices.RematChoice, Mark.NO_EFFECT] = "full"
    """Activations recomputed in the backward pass: none, full (all but block inputs), dots (matrix
    products and attention are kept), attention (only its output is kept), auto: the fastest."""

    @property
    def growth(self) -> Growth:
        """The size of the encoder relative to the one that the settings are meant for."""
        return self.growth_of(self.d_model, self.num_heads, self.num_layers)

    def factors(self, name: str) -> Factors:
        """Returns the factors of the settings of a parameter, such as `encoder/patch/kernel`."""
        in_layer = is_stacked(name)
        role: Role = "hidden" if in_layer and name.endswith("/kernel") else "input"
        if name.startswith("decoder/"):
            role = "output" if name == "decoder/embed/kernel" else "fixed"
        return self.growth.factors(role, in_layer=in_layer)

    def num_seen(self, num_patches: int) -> int:
        """Returns the patches that the encoder sees of an image of so many."""
        return int(num_patches * (1.0 - self.mask_ratio))

    def check(self, height: int, width: int) -> None:
        """Raises InputError where sizes do not fit together, or not to images of that size."""
        validate(self, "model")
        self.growth  # noqa: B018  refuses a base that does not fit
        choices.require_divisible(
            (height, self.patch_size, "the images' height by model.patch_size"),
            (width, self.patch_size, "the images' width by model.patch_size"),
            (self.d_model, self.num_heads, "model.d_model by model.num_heads"),
            (self.d_model, 4, "model.d_model by 4 (positions)"),
            (
                self.decoder_d_model,
                self.decoder_num_heads,
                "model.decoder_d_model by model.decoder_num_heads",
            ),
            (self.decoder_d_model, 4, "model.decoder_d_model by 4 (positions)"),
        )
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        if not 0 < self.num_seen(num_patches) < num_patches:
            raise InputError(
                f"model.mask_ratio={self.mask_ratio}: of {num_patches} patches, at least one must "
                "be removed and one be seen"
            )
