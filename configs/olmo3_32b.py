"""OLMo-3-32B (October 2025) and its stages, with OLMo-core.

Command   python -m jaxpretrain.main --config=configs/olmo3_32b.py:STAGE --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST \
              [--config.init_from=BEFORE]
Hardware  h100-80gb:32x8 or more: 32e9 parameters, 8.4M tokens a step; the script shards over 64
          GPUs at least.
Hours     about 800,000 H100-hours for stage 1: 5.5e12 tokens at the 1,900 tokens/s a GPU of the
          technical report.
Result    not published as a training loss.

STAGE is
- stage1 (without an argument, too): to step 656,000 (5.5e12 tokens), from which the others start;
- midtrain: 100e9 other tokens from the weights and moments of stage 1, whose folder is BEFORE;
  done twice, on different data;
- long_context: 100e9 tokens in sequences of 65,536. YaRN stretches the layers with full attention,
  and attention stays inside documents.

Source: src/scripts/official/OLMo3/OLMo-3-1025-32B-*.py of allenai/OLMo-core, and the list of public
checkpoints beside them. Uncertain:
- where the cosine of stage 1 ends: the script says after one epoch of OLMo-mix-0925, of which it
  gives no size. 1,007,541 steps is where step 656,000 and the rate at which midtrain begins,
  2.0712e-4, put it;
- whether SkipStepAdamW counted its steps, as in `olmo3_7b.py`;
- public checkpoints of stage 1 go on to step 679,000;
- long_context begins at the same rate and checkpoint as midtrain in its script, with a remark that
  names the merged ends of midtrain. It packs documents so that few are cut; here that does not
  happen.
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
    OlmoCoreOrder,
    RawTokens,
    RMSNorm,
    Rope,
    TextData,
    Train,
    Triangular,
    WarmupCosine,
    Yarn,
    nearest,
)

END_OF_DOCUMENT = 100257


def stage1() -> Experiment:
    """Pretraining."""
    return Experiment(
        model=replace(
            OLMO_SIZES["olmo3_32b"],
            z_loss=1e-5,
            loss_denominator="predictable",
            norm=RMSNorm(epsilon=1e-6, rounding="after_scale"),
            rope=Rope(theta=5e5),
            document_end=None,
            remat="auto",
        ),
        data=TextData(
            seq_len=8192,
            raw=RawTokens(dtype="uint32"),
            validation_split=None,
            order=OlmoCoreOrder(epoch_multiple=1024, chunk=1),
            instance_filter=InstanceFilter(max_period=13, min_period=1, max_count=32),
        ),
        optim=AdamW(
            schedule=WarmupCosine(
                start=0.0, peak=6e-4, end=6e-5, warmup="2000 steps", horizon="1007541 steps"
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
            duration="656000 steps", batch_size=1024, microbatch_size="auto", skip_outliers=6.0
        ),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=34521,
    )


def midtrain() -> Experiment:
    """Better data, while the learning rate falls to zero."""
    first = stage1()
    schedule = Triangular(start=0.0, peak=2.071235285e-4, end=0.0, warmup="0 steps")
    return replace(
        first,
        init_with="optimizer",
        data=replace(first.data, order=OlmoCoreOrder(epoch_multiple=512)),
        optim=replace(first.optim, schedule=schedule),
        train=replace(first.train, duration="100e9 tokens", batch_size=512),
        seed=42069,
    )


def long_context() -> Experiment:
    """Long sequences, eight times those of stage 1."""
    first = stage1()
    schedule = Triangular(start=0.0, peak=2.071235285e-4, end=0.0, warmup="200 steps")
    yarn = Yarn(theta=5e5, factor=8.0, original_length=8192, beta_fast=32.0, beta_slow=1.0)
    return replace(
        first,
        init_with="optimizer",
        model=replace(first.model, rope=yarn, document_end=END_OF_DOCUMENT),
        data=replace(first.data, seq_len=65536, order=OlmoCoreOrder(epoch_multiple=128)),
        optim=replace(first.optim, schedule=schedule),
        train=replace(first.train, duration="100e9 tokens", batch_size=128),
    )


STAGES = {f.__name__: f for f in (stage1, midtrain, long_context)}


def get_config(stage: str = "stage1") -> Experiment:
    """One stage."""
    if stage not in STAGES:
        hint = nearest(stage, STAGES) or f" There are {', '.join(STAGES)}."
        raise InputError(f"there is no stage {stage}.{hint}")
    return STAGES[stage]()
