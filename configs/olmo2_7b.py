"""OLMo-2-7B (November 2024), stage 1: 928,646 steps of 4.2M tokens, 3.9T tokens.

Command   python -m jaxpretrain.main --config=configs/olmo2_7b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:16x8 or more: 7.3e9 parameters, 4.2M tokens a step.
Hours     about 120,000 H100-hours (estimate from issue 823 of allenai/OLMo).
Result    not published as a training loss; stage 2 (`olmo2_7b_stage2.py`) begins at 6.1499e-5, the
          learning rate of step 928,000.

Source: configs/official-1124/OLMo2-7B-stage1.yaml of allenai/OLMo, whose 1,122 paths (uint32) are
the lines of LIST, in their order, repetitions too. The cosine is planned for 5e12 tokens; the one
epoch of the YAML is over before. The YAML's `auxiliary_loss_multiplier: 1e-5` is read by nothing
in that trainer: its z-loss has 1e-4. Whether the trainer as it ran was changed there is not known.
"""

from dataclasses import replace

from jaxpretrain.api import (
    OLMO_SIZES,
    AdamW,
    Checkpoint,
    Eval,
    Experiment,
    InstanceFilter,
    OlmoOrder,
    RawTokens,
    RMSNorm,
    TextData,
    Train,
    WarmupCosine,
)


def get_config() -> Experiment:
    """The hyperparameters of stage 1."""
    return Experiment(
        model=replace(
            OLMO_SIZES["olmo2_7b"],
            z_loss=1e-4,
            loss_denominator="all",
            norm=RMSNorm(epsilon=1e-6, rounding="before_scale"),
            document_end=None,
            remat="auto",
        ),
        data=TextData(
            seq_len=4096,
            raw=RawTokens(dtype="uint32"),
            validation_split=None,
            order=OlmoOrder(epoch_multiple=1024),
            instance_filter=InstanceFilter(max_period=13, min_period=1, max_count=32),
        ),
        optim=AdamW(
            schedule=WarmupCosine(
                start=0.0,
                peak=3e-4,
                end=3e-5,
                warmup="8388608000 tokens",
                horizon="5e12 tokens",
            ),
            betas=(0.9, 0.95),
            epsilon=1e-8,
            bias_correction="by_step",
            weight_decay=0.1,
            decayed=("kernel", "scale", "bias"),
            clip_norm=1.0,
            clip_warmup="0 steps",
            clip_warmup_factor=1.0,
        ),
        train=Train(
            duration="928646 steps", batch_size=1024, microbatch_size="auto", on_bad_step="stop"
        ),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=6198,
    )
