"""The smallest ladder: models for two CPU cores, to learn how scaling laws are made and scored.

Command   python -m jaxpretrain.scaling --config=configs/nano_ladder.py --sizes=48,64,96 \
              --multiples=2,4,8 --workdir=runs/ladder --jobs=2 --config.data.root=data/code
Hardware  cpu:1, two cores, 2 GB of memory.
Hours     about 0.5, by the speed of the runs in docs/scaling.md.
Result    points for `jaxpretrain scaling runs/ladder --predict=nano_ladder:160-5x`.

The argument is the width, a multiple of 16, and how many times twenty tokens a parameter, when not
once: 96-2.5x. N counts all parameters but the embedding. The source files of installed packages
are text enough, with a vocabulary of 512:

    jaxpretrain prepare --output=data/code --vocab_size=512 --max_undecodable=100 \
        --files="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/**/*.py"

Batch and warm-up follow configs/olmo_ladder.py; batches are multiples of 8. Its rule of the
learning rate does not reach down here. Widths share one rate instead, by mup (docs/widths.md): of
3e-2 and 6e-2 the second was better at widths 64 and 160.

Models have one layer. Two layers learn at some step to continue what the context has said before,
and that fall of the loss follows no law of size and tokens: the story is in docs/scaling.md.
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
    RMSNorm,
    TextData,
    Train,
    WarmupCosine,
)

HEAD = 16
SEQ_LEN = 128
VOCAB = 512
PEAK = 6e-2
"""The learning rate at the peak, of a model as wide as one head."""


def get_config(place: str = "64") -> Experiment:
    """A rung of the ladder: its width and its length."""
    width, _, length = place.partition("-")
    multiple = length.removesuffix("x") or "1"
    if not width.isdecimal() or not int(width) or int(width) % HEAD:
        raise InputError(f"there is no width {width}: it must be a multiple of {HEAD}")
    if not multiple.replace(".", "", 1).isdecimal() or not float(multiple):
        raise InputError(f"there is no length {length}: {width}-4x is four times as long")
    d_model = int(width)
    num_params = 13 * d_model**2 + d_model * VOCAB
    tokens = round(20 * float(multiple) * num_params)
    batch_tokens = 160 * 2048 * (num_params / 108e6) ** (2 / 3)
    return Experiment(
        model=Decoder(
            vocab_size=VOCAB,
            embedding_rows=VOCAB,
            d_model=d_model,
            num_layers=1,
            num_heads=d_model // HEAD,
            d_ff=3 * d_model,
            norm=RMSNorm(epsilon=1e-6),
            norm_position="before",
            qk_norm=True,
            init=Normal(),
            tied_head=False,
            dtype="float32",
            remat="none",
            scan_layers=False,
            scaling="mup",
            base_width=HEAD,
        ),
        data=TextData(root="data/code", seq_len=SEQ_LEN),
        optim=AdamW(
            schedule=WarmupCosine(
                start=0.0, peak=PEAK, end=0.01 * PEAK, warmup=f"{num_params} tokens"
            ),
            epsilon=1e-8,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=Train(
            duration=f"{tokens} tokens",
            batch_size=8 * max(1, round(batch_tokens / SEQ_LEN / 8)),
        ),
        eval=Eval(every="20000 steps", max_examples=8000),
        checkpoint=Checkpoint(every=0),
        monitor=Monitor(every="20 steps", signals_every=0, tensorboard=False),
    )
