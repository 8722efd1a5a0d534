"""OLMo-7B as released in February 2024: 2T tokens, 476,838 steps.

Command   python -m jaxpretrain.main --config=configs/olmo7b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:16x8 or more: 6.9e9 parameters, 4.2M tokens a step.
Hours     about 62,000 H100-hours: 2e12 tokens at the 9,000 tokens/s a GPU that OLMo's own trainer
          reaches (estimate from issue 823 of allenai/OLMo). The 5,000 steps of the warm-up are 1 %.
Result    training loss flattens at the end of the warm-up near 3.0 (perplexity 20) and goes on
          falling slowly: that is normal.

Source: configs/official-0724/OLMo-7B.yaml of allenai/OLMo, whose paths (Dolma v1_5 sample, uint16)
are the lines of LIST, in their order, repetitions too. Epsilon is that trainer's default, and so is
the warm-up's start at a tenth of the peak. The last 1000 steps may have gone down to zero; the YAML
does not say so.
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
    Triangular,
)


def get_config() -> Experiment:
    """The published hyperparameters."""
    return Experiment(
        model=replace(
            OLMO_SIZES["olmo_7b"],
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
            schedule=Triangular(start=3e-5, peak=3e-4, end=3e-5, warmup="5000 steps"),
            betas=(0.9, 0.95),
            epsilon=1e-5,
            bias_correction="by_step",
            weight_decay=0.1,
            decayed=("kernel",),
            clip_norm=1.0,
            clip_warmup="1000 steps",
            clip_warmup_factor=10.0,
        ),
        train=Train(
            duration="2e12 tokens", batch_size=2048, microbatch_size="auto", on_bad_step="stop"
        ),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=6198,
    )
