"""The published OLMo sizes, one row each, with the loss and the rounding that they were trained by.

Sources: configs/ and scripts/ladder.py of allenai/OLMo (OLMo 1, OLMo 2 up to 13B, the ladder), and
src/scripts/official of allenai/OLMo-core (OLMo 2 32B, OLMo 3). Parameter counts include the padded
embedding rows.
"""

from dataclasses import replace

from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.rotary import Rope

_OLMO_1 = Decoder(loss_denominator="all", reduce_dtype="float32")
_OLMO_2 = replace(
    _OLMO_1,
    vocab_size=100278,
    embedding_rows=100352,
    norm=RMSNorm(epsilon=1e-6),
    norm_position="after",
    qk_norm=True,
    rope=Rope(theta=500000.0),
    init=Normal(),
    # The configs say 1e-5, but the trainer never read it.
    z_loss=1e-4,
)
_CORE = replace(
    _OLMO_2,
    norm=RMSNorm(epsilon=1e-6, rounding="after_scale"),
    loss_denominator="predictable",
    z_loss=1e-5,
)
_OLMO_3 = replace(_CORE, windows=(4096, 4096, 4096, None))
# The ladder trained without FSDP, which is what makes the residual stream bfloat16 elsewhere.
_LADDER = replace(_OLMO_1, norm=RMSNorm(epsilon=1e-6), init=Normal(), residual_dtype="float32")
# From 150M on, its fused loss kernel adds a z-loss though none is configured.
_FUSED_LADDER = replace(_LADDER, z_loss=1e-4)

_7B = {"d_model": 4096, "num_layers": 32, "num_heads": 32, "d_ff": 11008}
_13B = {"d_model": 5120, "num_layers": 40, "num_heads": 40, "d_ff": 13824}
_32B = {"d_model": 5120, "num_layers": 64, "num_heads": 40, "num_kv_heads": 8, "d_ff": 27648}

OLMO_SIZES: dict[str, Decoder] = {
    "olmo_1b": replace(_OLMO_1, tied_head=True),
    "olmo_7b": replace(_OLMO_1, **_7B),
    "olmo_7b_0424": replace(_OLMO_1, **_7B, clip_qkv=8.0),
    "olmo_7b_0724": replace(_OLMO_1, **_7B, clip_qkv=8.0),
    "olmo2_1b": _OLMO_2,
    "olmo2_7b": replace(_OLMO_2, **_7B),
    "olmo2_13b": replace(_OLMO_2, **_13B),
    "olmo2_32b": replace(_CORE, **_32B),
    "olmo3_7b": replace(_OLMO_3, **_7B),
    "olmo3_32b": replace(_OLMO_3, **_32B),
    "olmo_20m": replace(_LADDER, d_model=256, num_layers=8, num_heads=8, d_ff=1024),
    "olmo_60m": replace(_LADDER, d_model=512, num_layers=8, num_heads=8, d_ff=2048),
    "olmo_150m": replace(_FUSED_LADDER, d_model=768, num_layers=12, num_heads=12, d_ff=3072),
    "olmo_300m": replace(_FUSED_LADDER, d_model=1024, d_ff=4096),
    "olmo_750m": replace(_FUSED_LADDER, d_model=1536, d_ff=6144),
}
"""The architectures of the pretraining, by name. The long-context stage of OLMo 3 changes `rope` to
YaRN and adds `document_end`."""
