"""OLMo-2-13B, stage 2: four runs from the end of stage 1, whose weights are then averaged.

Command   python -m jaxpretrain.main --config=configs/olmo2_13b_stage2.py:1110-100B --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST \
              --config.init_from=STAGE1
Hardware  h100-80gb:16x8 or more, as stage 1.
Hours     about 5,800 H100-hours for 100e9 tokens: stage 1's 290,000, times 0.1 / 5.0.
Result    the released base model is the average of the weights of the runs, moments left out.

The argument is the seed (of the order of the data) and the length. A run has the weights and the
moments of stage 1's last checkpoint to begin with, and data of its own. The learning rate falls
linearly to zero at the planned tokens; ten more steps follow at zero, as in OLMo's trainer.

Source: configs/official-1124/OLMo2-13B-stage2-seed*.yaml of allenai/OLMo, whose paths are the
lines of LIST.
"""

from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import Experiment, InputError, Triangular, load_config, nearest

# name: (seed, tokens after which the rate is zero, steps of the run)
INGREDIENTS = {
    "1110-100B": (1110, "100e9 tokens", "11931 steps"),
    "2662-100B": (2662, "100e9 tokens", "11931 steps"),
    "6209-100B": (6209, "100e9 tokens", "11931 steps"),
    "2662-300B": (2662, "300e9 tokens", "35773 steps"),
}


def get_config(ingredient: str = "1110-100B") -> Experiment:
    """One ingredient of stage 2."""
    if ingredient not in INGREDIENTS:
        hint = nearest(ingredient, INGREDIENTS) or f" There are {', '.join(INGREDIENTS)}."
        raise InputError(f"there is no ingredient {ingredient}.{hint}")
    seed, planned, duration = INGREDIENTS[ingredient]
    stage1 = load_config(str(Path(__file__).with_name("olmo2_13b.py")))
    schedule = Triangular(start=9e-5, peak=9e-5, end=0.0, warmup="0 steps", horizon=planned)
    return replace(
        stage1,
        init_with="optimizer",
        optim=replace(stage1.optim, schedule=schedule),
        train=replace(stage1.train, duration=duration),
        seed=seed,
    )
