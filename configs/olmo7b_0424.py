"""OLMo-7B, the edition of April 2024 (OLMo 1.7): longer sequences, clipped q, k, v, all decayed.

Command   python -m jaxpretrain.main --config=configs/olmo7b_0424.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:16x8 or more: 6.9e9 parameters, 4.2M tokens a step.
Hours     about 93,000 H100-hours: 3e12 tokens at 9,000 tokens/s a GPU (issue 823 of allenai/OLMo).
Result    not published as a training loss.

Source: configs/official-0724/OLMo-7B-0424.yaml of allenai/OLMo; epsilon is that trainer's default,
and so is the warm-up's start at a tenth of the peak. Uncertain: the YAML trains for two epochs of
its 1,033 files, of a length that it does not give. Here the run ends with the cosine, at 3e12
tokens; `--config.data.num_examples=N --config.train.duration="2 epochs"` is the YAML's. The release
had a second stage, which no YAML records.
"""

from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import OLMO_SIZES, Experiment, OlmoOrder, WarmupCosine, load_config


def get_config() -> Experiment:
    """The published hyperparameters: where they are not written here, those of February."""
    recipe = load_config(str(Path(__file__).with_name("olmo7b.py")))
    schedule = WarmupCosine(
        start=3e-5, peak=3e-4, end=3e-5, warmup="10485760000 tokens", horizon="3e12 tokens"
    )
    return replace(
        recipe,
        model=replace(OLMO_SIZES["olmo_7b_0424"], remat=recipe.model.remat),
        data=replace(recipe.data, seq_len=4096, order=OlmoOrder(epoch_multiple=1024)),
        optim=replace(
            recipe.optim,
            schedule=schedule,
            decayed=("kernel", "embedding", "scale", "bias"),
            clip_warmup="2097152000 tokens",
            clip_warmup_factor=5.0,
        ),
        train=replace(recipe.train, duration="3e12 tokens", batch_size=1024),
    )
