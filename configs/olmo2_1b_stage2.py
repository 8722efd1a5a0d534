"""OLMo-2-1B, stage 2: three runs from the end of stage 1, whose weights are then averaged.

Command   python -m jaxpretrain.main --config=configs/olmo2_1b_stage2.py:42 --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST \
              --config.init_from=STAGE1
Hardware  h100-80gb:16x8, as stage 1.
Hours     about 330 H100-hours each: 50e9 tokens at the 41,600 tokens/s a GPU of stage 1.
Result    the released base model is the average of the weights of the runs, moments left out.

The argument is the seed (of the order of the data): 42, 42069 or 666. A run begins with the
weights and the moments of stage 1, whose folder is STAGE1, and has data of its own. The learning
rate falls linearly to zero at the planned tokens; ten more steps follow at zero, as in OLMo's
trainer.

Source: configs/official-0425/OLMo2-1B-stage2-seed*.yaml of allenai/OLMo, whose paths are the lines
of LIST.
"""

from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import Experiment, InputError, Triangular, load_config, nearest

SEEDS = ("42", "42069", "666")


def get_config(seed: str = "42") -> Experiment:
    """One ingredient of stage 2."""
    if seed not in SEEDS:
        hint = nearest(seed, SEEDS) or f" There are {', '.join(SEEDS)}."
        raise InputError(f"there is no ingredient {seed}.{hint}")
    stage1 = load_config(str(Path(__file__).with_name("olmo2_1b.py")))
    schedule = Triangular(
        start=7.4487e-5, peak=7.4487e-5, end=0.0, warmup="0 steps", horizon="50e9 tokens"
    )
    return replace(
        stage1,
        init_with="optimizer",
        optim=replace(stage1.optim, schedule=schedule),
        train=replace(stage1.train, duration="23852 steps"),
        seed=int(seed),
    )
