"""OLMo-1B as released in February 2024: 739,328 steps of 4.2M tokens, 3.1T tokens.

Command   python -m jaxpretrain.main --config=configs/olmo1b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:8 or more hosts like it, or a TPU slice: 1.2e9 parameters (tied head).
Hours     about 19,000 H100-hours: 3.1e12 tokens at the 46,000 tokens/s a GPU that OLMo-core's PR 38
          reports.
Result    training loss 2.376, perplexity 10.8 at the end (issue 642 of allenai/OLMo).

Source: configs/official-0724/OLMo-1B.yaml of allenai/OLMo, whose paths are the lines of LIST, in
their order, repetitions too. Epsilon is that trainer's default, and so is the warm-up's start at a
tenth of the peak. The number of GPUs, which cuts the last sequences of an epoch, is not recorded.
"""

from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import OLMO_SIZES, Experiment, WarmupCosine, load_config


def get_config() -> Experiment:
    """The published hyperparameters: where they are not written here, those of the 7B."""
    recipe = load_config(str(Path(__file__).with_name("olmo7b.py")))
    return replace(
        recipe,
        model=replace(OLMO_SIZES["olmo_1b"], remat=recipe.model.remat),
        optim=replace(
            recipe.optim,
            schedule=WarmupCosine(start=4e-5, peak=4e-4, end=4e-5, warmup="2000 steps"),
            clip_warmup="0 steps",
            clip_warmup_factor=1.0,
        ),
        train=replace(recipe.train, duration="739328 steps"),
    )
