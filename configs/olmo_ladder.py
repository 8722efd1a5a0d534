"""The small models of OLMo's ladder on your own token files, by the ladder's rules.

Command   python -m jaxpretrain.main --config=configs/olmo_ladder.py:150m --workdir=DIR \
              --config.data.root=TOKEN_FILES
Hardware  one GPU of 24 GB or more up to 150m, of 80 GB up to 750m.
Hours     not measured. 20 N tokens are 120 N^2 operations: 7 H100-hours for 300m at 40 % of
          989.5e12 a second, and 47 for 750m; attention and embeddings come on top.
Result    a model to try ideas on; OLMo's ladder predicts larger models from such losses.

The argument is the size: 20m, 60m, 150m, 300m or 750m; how many times the twenty tokens a
parameter, when not once: 150m-5x or 150m-0.5x; and the rule of batch and learning rate, when not
the ladder's: 150m-5x-step_law. `jaxpretrain scaling --config=olmo_ladder --sizes=20m,60m,150m
--multiples=1,2,5` trains a whole ladder.

Source: scripts/ladder.py of allenai/OLMo, with N the size by its name. Batch 160 * (N /
108e6)^(2/3) sequences of 2,048, rounded to a multiple of 32; learning rate 0.0047 * (N /
108e6)^(-1/3); warm-up N tokens; cosine to 1 % of the peak; all parameters decay. Without FSDP the
residual stream is float32 there, and the fused loss has OLMo's z-loss. The script has no 20m and
60m; they are rows of configs/tiny. `step_law` takes the rule of arXiv 2503.04715 instead, for D
tokens: learning rate 1.79 N^-0.713 D^0.307, batches of 0.58 D^0.571 tokens, here a multiple of
8 sequences.
"""

from dataclasses import replace

from jaxpretrain.api import (
    OLMO_SIZES,
    AdamW,
    Checkpoint,
    Eval,
    Experiment,
    InputError,
    InstanceFilter,
    OlmoOrder,
    RMSNorm,
    TextData,
    Train,
    WarmupCosine,
    nearest,
)

SIZES = {"20m": 20e6, "60m": 60e6, "150m": 150e6, "300m": 300e6, "750m": 750e6}


RULES = ("olmo", "step_law")
SEQ_LEN = 2048


def get_config(size_and_length: str = "150m") -> Experiment:
    """The ladder's rules at a size, for `1x` or more of twenty tokens a parameter."""
    size, _, rest = size_and_length.partition("-")
    length, _, rule = rest.partition("-")
    multiple = length.removesuffix("x") or "1"
    if size not in SIZES or not multiple.replace(".", "", 1).isdecimal() or not float(multiple):
        hint = nearest(size, SIZES) or f" Sizes are {', '.join(SIZES)}; 150m-5x is one for longer."
        raise InputError(f"there is no {size_and_length}.{hint}")
    if (rule or "olmo") not in RULES:
        hint = nearest(rule, RULES) or f" The rules are {', '.join(RULES)}."
        raise InputError(f"there is no rule {rule}.{hint}")
    num_params = SIZES[size]
    tokens = round(20 * float(multiple) * num_params)
    if rule == "step_law":
        batch_size = 8 * max(1, round(0.58 * tokens**0.571 / SEQ_LEN / 8))
        peak = 1.79 * num_params**-0.713 * tokens**0.307
    else:
        batch_size = 32 * round(160 * (num_params / 108e6) ** (2 / 3) / 32)
        peak = 0.0047 * (num_params / 108e6) ** (-1 / 3)
    return Experiment(
        model=replace(
            OLMO_SIZES[f"olmo_{size}"],
            z_loss=1e-4,
            loss_denominator="all",
            norm=RMSNorm(epsilon=1e-6, rounding="before_scale"),
            residual_dtype="float32",
            document_end=None,
            remat="none" if num_params < 150e6 else "attention",
        ),
        data=TextData(
            seq_len=SEQ_LEN,
            order=OlmoOrder(epoch_multiple=batch_size),
            instance_filter=InstanceFilter(max_period=13, min_period=1, max_count=32),
        ),
        optim=AdamW(
            schedule=WarmupCosine(
                start=0.0,
                peak=peak,
                end=0.01 * peak,
                # The script rounds to the nearest step.
                warmup=f"{round(num_params / (batch_size * SEQ_LEN))} steps",
            ),
            betas=(0.9, 0.95),
            epsilon=1e-8,
            bias_correction="by_step",
            weight_decay=0.05,
            decayed=("kernel", "embedding", "scale", "bias"),
            clip_norm=1.0,
            clip_warmup="0 steps",
            clip_warmup_factor=1.0,
        ),
        train=Train(
            duration=f"{tokens} tokens",
            batch_size=batch_size,
            microbatch_size="auto",
            on_bad_step="stop",
        ),
        eval=Eval(every="500 steps"),
        checkpoint=Checkpoint(every="1000 steps"),
        seed=6198,
    )
