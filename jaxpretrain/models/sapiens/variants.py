"""The published sizes of Sapiens, and small ones of the same kind."""

from dataclasses import replace

from jaxpretrain.models.sapiens.model import VitMae

_SAPIENS = VitMae(reduce_dtype="float32")
_SMALL = replace(_SAPIENS, decoder_d_model=128, decoder_num_layers=2, decoder_num_heads=4)

SAPIENS_SIZES: dict[str, VitMae] = {
    "sapiens_0_3b": _SAPIENS,
    "sapiens_0_6b": replace(_SAPIENS, d_model=1280, num_layers=32, num_heads=16, d_ff=5120),
    "sapiens_1b": replace(_SAPIENS, d_model=1536, num_layers=40, num_heads=24, d_ff=6144),
    "sapiens_2b": replace(_SAPIENS, d_model=1920, num_layers=48, num_heads=32, d_ff=7680),
    "mae_nano": replace(_SMALL, d_model=128, num_layers=4, num_heads=4, d_ff=512),
    "mae_tiny": replace(_SMALL, d_model=192, num_layers=12, num_heads=3, d_ff=768),
    "mae_small": replace(_SAPIENS, d_model=384, num_layers=12, num_heads=6, d_ff=1536),
    "mae_base": replace(_SAPIENS, d_model=768, num_layers=12, num_heads=12, d_ff=3072),
}
"""The published Sapiens sizes by name, and small ones of the same kind.

Patches have 16 pixels a side; small images want a smaller size. Sources: the configs of
facebookresearch/sapiens, `pretrain/configs/sapiens_mae`. The model cards count encoder, decoder and
both fixed tables of positions."""
