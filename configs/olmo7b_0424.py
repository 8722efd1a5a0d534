"""OLMo-7B, the edition of April 2024 (OLMo 1.7): longer sequences, clipped q, k, v, all decayed.

Command   python -m jaxpretrain.main --config=configs/olmo7b_0424.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:16x8 or more: 6.9e9 parameters, 4.2M tokens a step.
Hours     about 93,000 H100-hours: 3e12 tokens at 9,000 tokens/s a GPU (issue 823 of allenai/OLMo).
Result    not published as a training loss.

Source: configs/official-0724/OLMo-7B-0424.yaml of allenai/OLMo; epsilon is that trainer's default,
and so is the warm-up's start at a tenth of the peak. Uncertain: the YAML trains for two epochs of
its 1,033 files, of a length that it does not give. Here the run ends with the cosine, at 3e12
tokens; `--config.data.num_examples=N --config.train.duration="2 epochs"` is the YAML's. The release
had a second stage, which no YAML records.
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
            OLMO_SIZES["olmo_7b_0424"],
            z_loss=0.0,
            loss_denominator="all",
            document_end=None,
            remat="auto",
        ),
        data=TextData(
            seq_len=4096,
            raw=None,  # uint16 ids
            validation_split=None,
            order=OlmoOrder(epoch_multiple=1024),
            instance_filter=None,
        ),
        optim=AdamW(
            schedule=WarmupCosine(
                start=3e-5,
                peak=3e-4,
                end=3e-5,
                warmup="10485760000 tokens",
                horizon="3e12 tokens",
            ),
            betas=(0.9, 0.95),
            epsilon=1e-5,
            bias_correction="by_step",
            weight_decay=0.1,
            decayed=("kernel", "embedding", "scale", "bias"),
            clip_norm=1.0,
            clip_warmup="2097152000 tokens",
            clip_warmup_factor=5.0,
        ),
        train=Train(
            duration="3e12 tokens", batch_size=1024, microbatch_size="auto", skip_outliers=None
        ),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=6198,
    )
