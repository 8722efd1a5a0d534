"""OLMo-1B as released in February 2024: 739,328 steps of 4.2M tokens, 3.1T tokens.

Command   python -m jaxpretrain.main --config=configs/olmo1b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:8 or more hosts like it, or a TPU slice: 1.2e9 parameters (tied head).
Hours     about 19,000 H100-hours: 3.1e12 tokens at the 46,000 tokens/s a GPU that OLMo-core's PR 38
          reports.
Result    training loss 2.376, perplexity 10.8 at the end (issue 642 of allenai/OLMo).

Source: configs/official-0724/OLMo-1B.yaml of allenai/OLMo, whose paths are the lines of LIST, in
their order, repetitions too. Epsilon is that trainer's default, and so is the warm-up's start at a
tenth of the peak. The number of GPUs, which cuts the last sequences of an epoch, is not recorded.
"""

from dataclasses import replace

from jaxpretrain.api import (
    OLMO_SIZES,
    AdamW,
    Checkpoint,
    Eval,
    Experiment,
    OlmoOrder,
    TextData,
    Train,
    WarmupCosine,
)


def get_config() -> Experiment:
    """The published hyperparameters."""
    return Experiment(
        model=replace(
            OLMO_SIZES["olmo_1b"],
            z_loss=0.0,
            loss_denominator="all",
            document_end=None,
            remat="auto",
        ),
        data=TextData(
            seq_len=2048,
            raw=None,  # uint16 ids
            validation_split=None,
            order=OlmoOrder(epoch_multiple=2048),
            instance_filter=None,
        ),
        optim=AdamW(
            schedule=WarmupCosine(start=4e-5, peak=4e-4, end=4e-5, warmup="2000 steps"),
            betas=(0.9, 0.95),
            epsilon=1e-5,
            bias_correction="by_step",
            weight_decay=0.1,
            decayed=("kernel",),
            clip_norm=1.0,
            clip_warmup="0 steps",
            clip_warmup_factor=1.0,
        ),
        train=Train(
            duration="739328 steps", batch_size=2048, microbatch_size="auto", skip_outliers=None
        ),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=6198,
    )
