"""OLMo-3-7B (October 2025) and its stages, with OLMo-core.

Command   python -m jaxpretrain.main --config=configs/olmo3_7b.py:STAGE --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST \
              [--config.init_from=BEFORE]
Hardware  h100-80gb:16x8 or more: 7.3e9 parameters, 4.2M tokens a step.
Hours     about 214,000 H100-hours for stage 1: 5.93e12 tokens at the 7,700 tokens/s a GPU of the
          technical report.
Result    not published as a training loss.

STAGE is
- stage1 (without an argument, too): planned for 5e12 tokens and stopped half way down its cosine,
  at step 597,046 (2.5e12 tokens);
- stage1_extended: goes on in the same folder, with --allow_config_change, on a cosine planned for
  7e12 tokens, to step 1,413,814 (5.93e12 tokens);
- midtrain: 100e9 other tokens from the weights and moments of stage 1, whose folder is BEFORE;
- long_context: 50e9 tokens in sequences of 65,536 from those of midtrain. YaRN stretches the layers
  with full attention, and attention stays inside documents.

Source: src/scripts/official/OLMo3/OLMo-3-1025-7B-*.py of allenai/OLMo-core, and the list of public
checkpoints beside them. Uncertain:
- whether SkipStepAdamW counted its steps: development scripts say it did not, the official ones
  leave the default, that it did. `--config.optim.bias_correction=as_first` is the other answer;
- the script of the extension begins at step 596,047, and that of the first part stops at 597,046;
- midtrain begins at 2.0712e-4, and the extension ends at 3.93e-5;
- the length of long_context is that of the public checkpoints, 11,921 steps; its script says 5e12
  tokens. It packs documents so that few are cut and multiplies in fp8; here neither happens.
"""

from dataclasses import replace

from jaxpretrain.api import (
    OLMO_SIZES,
    AdamW,
    Checkpoint,
    Eval,
    Experiment,
    InputError,
    OlmoCoreOrder,
    RawTokens,
    RMSNorm,
    Rope,
    Skip,
    TextData,
    Train,
    Triangular,
    WarmupCosine,
    Yarn,
    nearest,
)

END_OF_DOCUMENT = 100257


def stage1() -> Experiment:
    """The first half of pretraining."""
    return Experiment(
        model=replace(
            OLMO_SIZES["olmo3_7b"],
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
            order=OlmoCoreOrder(epoch_multiple=512, chunk=1),
            instance_filter=None,
        ),
        optim=AdamW(
            schedule=WarmupCosine(
                start=0.0, peak=3e-4, end=3e-5, warmup="2000 steps", horizon="5e12 tokens"
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
            duration="597046 steps",
            batch_size=512,
            microbatch_size="auto",
            on_bad_step=Skip(not_finite=False, outliers=6.0),
        ),
        eval=Eval(every="10000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=34521,
    )


def stage1_extended() -> Experiment:
    """The second half: the rest of a longer cosine, from its middle on."""
    first = stage1()
    schedule = WarmupCosine(
        start=0.0,
        peak=1.65e-4,  # the middle of 3e-4 and 3e-5
        end=3e-5,
        warmup="597046 steps",
        horizon="7e12 tokens",
        shape="second_half",
    )
    return replace(
        first,
        optim=replace(first.optim, schedule=schedule),
        train=replace(first.train, duration="1413814 steps"),
    )


def midtrain() -> Experiment:
    """Better data, while the learning rate falls to zero."""
    first = stage1()
    schedule = Triangular(start=0.0, peak=2.0712352850360292e-4, end=0.0, warmup="0 steps")
    return replace(
        first,
        init_with="optimizer",
        data=replace(first.data, order=OlmoCoreOrder(epoch_multiple=256)),
        optim=replace(first.optim, schedule=schedule),
        train=replace(first.train, duration="100e9 tokens", batch_size=256),
        seed=1337,
    )


def long_context() -> Experiment:
    """Long sequences, eight times those of stage 1."""
    first = stage1()
    schedule = Triangular(start=0.0, peak=2.0712352850360292e-4, end=0.0, warmup="200 steps")
    yarn = Yarn(theta=5e5, factor=8.0, original_length=8192, beta_fast=32.0, beta_slow=1.0)
    return replace(
        first,
        init_with="optimizer",
        model=replace(first.model, rope=yarn, document_end=END_OF_DOCUMENT),
        data=replace(first.data, seq_len=65536, order=OlmoCoreOrder(epoch_multiple=64)),
        optim=replace(first.optim, schedule=schedule),
        train=replace(first.train, duration="50e9 tokens", batch_size=64),
    )


STAGES = {f.__name__: f for f in (stage1, stage1_extended, midtrain, long_context)}


def get_config(stage: str = "stage1") -> Experiment:
    """One stage."""
    if stage not in STAGES:
        hint = nearest(stage, STAGES) or f" There are {', '.join(STAGES)}."
        raise InputError(f"there is no stage {stage}.{hint}")
    return STAGES[stage]()
