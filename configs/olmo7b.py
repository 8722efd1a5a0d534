"""OLMo-7B as released in February 2024: 2T tokens, 476,838 steps.

Command   python -m jaxpretrain.main --config=configs/olmo7b.py --workdir=DIR \
              --config.data.root=TOKEN_FILES
Hardware  a pod: 6.9e9 parameters, 4.2M tokens a step. Some 9,000 tokens/s on each H100 are what
          OLMo's own trainers reach (estimate from issue 823 of allenai/OLMo).
Hours     about 62,000 H100-hours at that rate; the 5,000 steps of the warm-up are 1 % of them.
Result    training loss flattens at the end of the warm-up near 3.0 (perplexity 20) and goes on
          falling slowly: that is normal.

Source: configs/official-0724/OLMo-7B.yaml and the OLMo 1 release of allenai/OLMo. Its token files
(Dolma v1_5 sample, uint16) are listed in that YAML; data.root is the folder that holds them.
"""

from dataclasses import replace

from jaxpretrain.data.text import TextData
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo import VARIANTS
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular
from jaxpretrain.train.experiment import Checkpoint, Experiment, Train


def get_config() -> Experiment:
    """The published hyperparameters."""
    return Experiment(
        model=replace(VARIANTS["olmo_7b"], remat="full"),
        data=TextData(seq_len=2048, validation_split=None),
        optim=AdamW(
            schedule=Triangular(
                start=3e-5, peak=3e-4, end=3e-5, warmup="5000 steps", plateau="0 steps"
            ),
            beta1=0.9,
            beta2=0.95,
            epsilon=1e-5,
            weight_decay=0.1,
            decayed=("kernel",),
            clip_norm=1.0,
        ),
        train=Train(duration="2e12 tokens", batch_size=2048),
        eval=Eval(every="1000 steps"),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=6198,
    )
