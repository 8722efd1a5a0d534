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
from pathlib import Path

from jaxpretrain.api import OLMO_SIZES, Experiment, OlmoCoreOrder, Skip, WarmupCosine, load_config


def get_config() -> Experiment:
    """The hyperparameters of stage 1: where they are not written here, those of the 7B."""
    recipe = load_config(str(Path(__file__).with_name("olmo2_7b.py")))
    schedule = WarmupCosine(
        start=0.0, peak=6e-4, end=6e-5, warmup="2000 steps", horizon="6.5e12 tokens"
    )
    return replace(
        recipe,
        model=replace(OLMO_SIZES["olmo2_32b"], remat=recipe.model.remat),
        data=replace(
            recipe.data, order=OlmoCoreOrder(epoch_multiple=2048, chunk=2), instance_filter=None
        ),
        optim=replace(recipe.optim, schedule=schedule, bias_correction="as_first"),
        train=replace(
            recipe.train,
            duration="721901 steps",
            batch_size=2048,
            on_bad_step=Skip(not_finite=False, outliers=6.0),
        ),
        seed=34521,
    )
