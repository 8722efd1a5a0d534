"""OLMo-1B as released in February 2024: 739,328 steps of 4.2M tokens, 3.1T tokens.

Command   python -m jaxpretrain.main --config=configs/olmo1b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES
Hardware  one or more hosts of eight GPUs, or a TPU slice: 1.2e9 parameters (tied head).
Hours     about 19,000 H100-hours at the 45,000 tokens/s a GPU that OLMo-core reports.
Result    training loss 2.376, perplexity 10.8 at the end (issue 642 of allenai/OLMo).

Source: configs/official-0724/OLMo-1B.yaml of allenai/OLMo; epsilon is that trainer's default.
"""

from dataclasses import replace

from jaxpretrain.data.text import TextData
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo import VARIANTS
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import WarmupCosine
from jaxpretrain.train.experiment import Checkpoint, Experiment, Train


def get_config() -> Experiment:
    """The published hyperparameters."""
    return Experiment(
        model=replace(VARIANTS["olmo_1b"], remat="attention"),
        data=TextData(seq_len=2048, validation_split=None),
        optim=AdamW(
            # The warm-up begins at a tenth of the peak, as OLMo's trainer does unless told.
            schedule=WarmupCosine(start=4e-5, peak=4e-4, end=4e-5, warmup="2000 steps"),
            beta1=0.9,
            beta2=0.95,
            epsilon=1e-5,
            weight_decay=0.1,
            decayed=("kernel",),
            clip_norm=1.0,
        ),
        train=Train(duration="739328 steps", batch_size=2048),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=6198,
    )
