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
from pathlib import Path

from jaxpretrain.api import (
    OLMO_SIZES,
    Eval,
    Experiment,
    InputError,
    InstanceFilter,
    OlmoCoreOrder,
    load_config,
    nearest,
)

# name: (batch, duration, changes of the 7B's schedule, seed)
STAGES = {
    "stage1": (
        1024,
        "656000 steps",
        {"peak": 6e-4, "end": 6e-5, "horizon": "1007541 steps"},
        34521,
    ),
    "midtrain": (512, "100e9 tokens", {"peak": 2.071235285e-4}, 42069),
    "long_context": (128, "100e9 tokens", {"peak": 2.071235285e-4}, 34521),
}


def get_config(stage: str = "stage1") -> Experiment:
    """One stage: where its hyperparameters are not written here, those of the 7B."""
    if stage not in STAGES:
        hint = nearest(stage, STAGES) or f" There are {', '.join(STAGES)}."
        raise InputError(f"there is no stage {stage}.{hint}")
    batch_size, duration, changes, seed = STAGES[stage]
    recipe = load_config(f"{Path(__file__).with_name('olmo3_7b.py')}:{stage}")
    model = recipe.model
    return replace(
        recipe,
        model=replace(
            OLMO_SIZES["olmo3_32b"],
            rope=model.rope,
            document_end=model.document_end,
            remat=model.remat,
        ),
        data=replace(
            recipe.data,
            order=OlmoCoreOrder(epoch_multiple=batch_size),
            instance_filter=InstanceFilter(max_period=13, min_period=1, max_count=32),
        ),
        optim=replace(recipe.optim, schedule=replace(recipe.optim.schedule, **changes)),
        train=replace(recipe.train, duration=duration, batch_size=batch_size),
        eval=Eval(every="1000 steps"),
        seed=seed,
    )
