"""The published OLMo sizes, one row each.

Sources: configs/official-* and scripts/ladder.py of allenai/OLMo. Parameter counts include the
padded embedding rows.
"""

from dataclasses import replace

from jaxpretrain.models.decoder import Decoder

_OLMO_1 = Decoder()
_OLMO_2 = Decoder(
    vocab_size=100278,
    embedding_rows=100352,
    norm="rmsnorm",
    norm_epsilon=1e-6,
    norm_position="after",
    qk_norm=True,
    rope_theta=500000.0,
    init="normal",
)
_LADDER = replace(_OLMO_1, norm="rmsnorm", norm_epsilon=1e-6, init="normal")

VARIANTS: dict[str, Decoder] = {
    "olmo_1b": replace(_OLMO_1, tied_head=True),
    "olmo_7b": replace(_OLMO_1, d_model=4096, num_layers=32, num_heads=32, d_ff=11008),
    "olmo2_1b": _OLMO_2,
    "olmo2_7b": replace(_OLMO_2, d_model=4096, num_layers=32, num_heads=32, d_ff=11008),
    "olmo_20m": replace(_LADDER, d_model=256, num_layers=8, num_heads=8, d_ff=1024),
    "olmo_60m": replace(_LADDER, d_model=512, num_layers=8, num_heads=8, d_ff=2048),
}
"""Name -> architecture."""
