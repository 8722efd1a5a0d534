"""The smallest ladder: models for two CPU cores, to learn how scaling laws are made and scored.

Command   python -m jaxpretrain.scaling --config=configs/nano_ladder.py --sizes=48,64,80 \
              --multiples=1,2,4 --workdir=runs/ladder --jobs=2 --config.data.root=data/code
Hardware  cpu:1, two cores, 2 GB of memory.
Hours     about 1 (eight of the nine runs took 0.8 beside other work).
Result    points for `jaxpretrain scaling runs/ladder --predict=nano_ladder:96-5x`; docs/scaling.md.

The argument is the width: 48, 64, 80, 96, 112 or 128; how many times twenty tokens a parameter,
when not once: 96-2.5x; and the rule of batch and learning rate, when not that of OLMo's ladder:
96-4x-step_law. N counts all parameters but the embedding. The source files of installed packages
are text enough, with a vocabulary of 1,024:

    jaxpretrain prepare --output=data/code --vocab_size=1024 --max_undecodable=100 \
        --files="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/**/*.py"

The rules are those of configs/olmo_ladder.py, far below the sizes that they were found at; batches
are multiples of 8.
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
    nearest,
)

WIDTHS = ("48", "64", "80", "96", "112", "128")
NUM_LAYERS = 2
"""The number of layers of all widths: a law is about models of one shape."""
RULES = ("olmo", "step_law")
SEQ_LEN = 256
VOCAB = 1024


def get_config(place: str = "48") -> Experiment:
    """A rung of the ladder: its width, its length and its rule."""
    width, _, rest = place.partition("-")
    length, _, rule = rest.partition("-")
    multiple = length.removesuffix("x") or "1"
    if width not in WIDTHS or not multiple.replace(".", "", 1).isdecimal() or not float(multiple):
        hint = nearest(width, WIDTHS) or f" Widths are {', '.join(WIDTHS)}; 96-4x is longer."
        raise InputError(f"there is no {place}.{hint}")
    if (rule or "olmo") not in RULES:
        raise InputError(f"there is no rule {rule}. The rules are {', '.join(RULES)}.")
    d_model = int(width)
    d_ff = 8 * d_model // 3 // 16 * 16
    layer = 4 * d_model**2 + 3 * d_model * d_ff
    num_params = NUM_LAYERS * layer + d_model * VOCAB
    tokens = round(20 * float(multiple) * num_params)
    if rule == "step_law":
        batch_tokens = 0.58 * tokens**0.571
        peak = 1.79 * num_params**-0.713 * tokens**0.307
    else:
        batch_tokens = 160 * 2048 * (num_params / 108e6) ** (2 / 3)
        peak = 0.0047 * (num_params / 108e6) ** (-1 / 3)
    batch_size = 8 * max(1, round(batch_tokens / SEQ_LEN / 8))
    return Experiment(
        model=Decoder(
            vocab_size=VOCAB,
            embedding_rows=VOCAB,
            d_model=d_model,
            num_layers=NUM_LAYERS,
            num_heads=4,
            d_ff=d_ff,
            norm=RMSNorm(epsilon=1e-6),
            norm_position="after",
            qk_norm=True,
            init=Normal(),
            tied_head=False,
            dtype="float32",
            remat="none",
            scan_layers=False,
        ),
        data=TextData(root="data/code", seq_len=SEQ_LEN),
        optim=AdamW(
            schedule=WarmupCosine(
                start=0.0, peak=peak, end=0.01 * peak, warmup=f"{num_params} tokens"
            ),
            epsilon=1e-8,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=Train(duration=f"{tokens} tokens", batch_size=batch_size),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every=0),
        monitor=Monitor(every="20 steps", signals_every=0, tensorboard=False),
    )
