"""OLMo-2-13B (November 2024), stage 1: 596,057 steps of 8.4M tokens, 5.0T tokens.

Command   python -m jaxpretrain.main --config=configs/olmo2_13b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:16x8 or more: 13.7e9 parameters, 8.4M tokens a step.
Hours     about 290,000 H100-hours: the 120,000 of the 7B, times 13.7 / 7.3 parameters, times
          5.0 / 3.9 tokens.
Result    not published as a training loss; stage 2 (`olmo2_13b_stage2.py`) begins at 9e-5, the
          learning rate of the last step.

Source: configs/official-1124/OLMo2-13B-stage1.yaml of allenai/OLMo, whose 1,122 paths (uint32) are
the lines of LIST, in their order, repetitions too. The 596,057 steps are 5e12 tokens and the ten
steps that the trainer adds; the YAML says one epoch. Uncertain: the YAML's learning rate is 3e-4,
which the command that started the run overrode with 9e-4; stage 2 begins at a tenth of that, so
9e-4 it is here. The checkpoints come from a run whose name ends in `zlossfix`: the z-loss may have
changed on the way. The YAML's `auxiliary_loss_multiplier: 1e-5` is read by nothing in that
trainer: its z-loss has 1e-4.
"""

from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import OLMO_SIZES, Experiment, OlmoOrder, load_config


def get_config() -> Experiment:
    """The hyperparameters of stage 1: where they are not written here, those of the 7B."""
    recipe = load_config(str(Path(__file__).with_name("olmo2_7b.py")))
    return replace(
        recipe,
        model=replace(OLMO_SIZES["olmo2_13b"], remat=recipe.model.remat),
        data=replace(recipe.data, order=OlmoOrder(epoch_multiple=2048)),
        optim=replace(recipe.optim, schedule=replace(recipe.optim.schedule, peak=9e-4, end=9e-5)),
        train=replace(recipe.train, duration="596057 steps", batch_size=2048),
    )
