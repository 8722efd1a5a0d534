"""OLMo-2-32B, stage 2: runs from the end of stage 1, whose weights are then averaged.

Command   python -m jaxpretrain.main --config=configs/olmo2_32b_stage2.py:100B --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST \
              --config.init_from=STAGE1 --config.seed=SEED
Hardware  h100-80gb:32x8 or more, as stage 1.
Hours     about 15,000 H100-hours for 100e9 tokens at the 1,800 tokens/s a GPU of stage 1.
Result    the released base model is the average of the weights of the runs, moments left out.

The argument is the length, 100B or 300B; a run begins with the weights and the moments of stage 1,
whose folder is STAGE1, and has data of its own. The learning rate falls linearly from where stage
1 left it, 6.623e-5 (computed: the script reads it off the checkpoint), to zero.

Source: src/scripts/official/OLMo2/OLMo-2-0325-32B-anneal.py of allenai/OLMo-core, and the list of
public checkpoints beside it: two runs of 11,921 steps and one of 35,763. Uncertain: the seeds, of
which the script gives one, 34521, to be changed.
"""

from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import Experiment, InputError, OlmoCoreOrder, Triangular, load_config

DURATIONS = {"100B": "100e9 tokens", "300B": "300e9 tokens"}


def get_config(length: str = "100B") -> Experiment:
    """One ingredient of stage 2."""
    if length not in DURATIONS:
        raise InputError(f"there is no run of length {length}; there are {', '.join(DURATIONS)}")
    stage1 = load_config(str(Path(__file__).with_name("olmo2_32b.py")))
    schedule = Triangular(start=6.623e-5, peak=6.623e-5, end=0.0, warmup="0 steps", horizon=None)
    return replace(
        stage1,
        init_with="optimizer",
        # The script names no longer sequences to cut the files for: no pairs.
        data=replace(stage1.data, order=OlmoCoreOrder(epoch_multiple=2048)),
        optim=replace(stage1.optim, schedule=schedule),
        train=replace(stage1.train, duration=DURATIONS[length]),
    )
