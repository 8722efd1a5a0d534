"""OLMo-2-1B (April 2025), stage 1: 1,907,359 steps of 2.1M tokens, 4.0T tokens.

Command   python -m jaxpretrain.main --config=configs/olmo2_1b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:16x8 in the published run: 1.5e9 parameters, 2.1M tokens a step.
Hours     about 27,000 H100-hours: 8 days 17 hours on 128 (issue 861 of allenai/OLMo).
Result    not published as a training loss; stage 2 (`olmo2_1b_stage2.py`) begins at 7.4487e-5,
          the learning rate of the last step.

Source: configs/official-0425/OLMo2-1B-stage1.yaml of allenai/OLMo, whose 1,122 paths (uint32) are
the lines of LIST, in their order, repetitions too. It trains for 4e12 tokens, 1,907,349 steps, and
ten more, as that trainer does after every `max_duration`. The YAML's `auxiliary_loss_multiplier:
1e-5` is read by nothing in that trainer: its z-loss has 1e-4. Whether the trainer as it ran was
changed there is not known.
"""

from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import OLMO_SIZES, Experiment, OlmoOrder, load_config


def get_config() -> Experiment:
    """The hyperparameters of stage 1: where they are not written here, those of the 7B."""
    recipe = load_config(str(Path(__file__).with_name("olmo2_7b.py")))
    return replace(
        recipe,
        model=replace(OLMO_SIZES["olmo2_1b"], remat=recipe.model.remat),
        data=replace(recipe.data, order=OlmoOrder(epoch_multiple=512)),
        optim=replace(recipe.optim, schedule=replace(recipe.optim.schedule, peak=4e-4, end=4e-5)),
        train=replace(recipe.train, duration="1907359 steps", batch_size=512),
    )
