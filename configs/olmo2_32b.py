"""OLMo-2-32B (March 2025), stage 1: 721,901 steps of 8.4M tokens, 6.1T tokens, with OLMo-core.

Command   python -m jaxpretrain.main --config=configs/olmo2_32b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:32x8 or more: 32e9 parameters, 8.4M tokens a step; the script shards over 64
          GPUs at least.
Hours     about 930,000 H100-hours: 6.06e12 tokens at the 1,800 tokens/s a GPU that Ai2 reports.
Result    not published as a training loss.

Source: src/scripts/official/OLMo2/OLMo-2-0325-32B-train.py of allenai/OLMo-core; LIST holds the
paths of its OLMoE-mix-0824 in their order. The cosine is planned for 6.5e12 tokens; the last public
checkpoint is that of step 721,901. The optimizer is SkipStepAdamW as it was in February 2025, whose
count of steps stood still: updates are 2.236 times as large as the learning rate says. Sequences
stay together in pairs, since the script cuts files for lengths up to 8,192.
"""

from dataclasses import replace

from jaxpretrain.api import (
    OLMO_SIZES,
    AdamW,
    Checkpoint,
    Eval,
    Experiment,
    OlmoCoreOrder,
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
            OLMO_SIZES["olmo2_32b"],
            z_loss=1e-5,
            loss_denominator="predictable",
            norm=RMSNorm(epsilon=1e-6, rounding="after_scale"),
            document_end=None,
            remat="auto",
        ),
        data=TextData(
            seq_len=4096,
            raw=RawTokens(dtype="uint32"),
            validation_split=None,
            order=OlmoCoreOrder(epoch_multiple=2048, chunk=2),
            instance_filter=None,
        ),
        optim=AdamW(
            schedule=WarmupCosine(
                start=0.0, peak=6e-4, end=6e-5, warmup="2000 steps", horizon="6.5e12 tokens"
            ),
            betas=(0.9, 0.95),
            epsilon=1e-8,
            bias_correction="as_first",
            weight_decay=0.1,
            decayed=("kernel", "scale", "bias"),
            clip_norm=1.0,
            clip_warmup="0 steps",
            clip_warmup_factor=1.0,
        ),
        train=Train(
            duration="721901 steps", batch_size=2048, microbatch_size="auto", skip_outliers=6.0
        ),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=34521,
    )
