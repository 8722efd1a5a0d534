"""The 60M model of OLMo's ladder on your own token files: one GPU, an afternoon.

Command   python -m jaxpretrain.main --config=configs/olmo_60m.py --workdir=DIR \
              --config.data.root=TOKEN_FILES
Hardware  one GPU of 24 GB or more: 85M parameters with the untied, padded embeddings.
Hours     not measured; 1.2B tokens, twenty for each parameter.
Result    a model to try ideas on; OLMo's ladder predicts larger models from such losses.

Source: the rules of scripts/ladder.py of allenai/OLMo, with N = 59,318,784 parameters besides the
input embedding: batch 160 * (N / 108e6)^(2/3) = 107 sequences of 2,048, rounded to 96 = 3 * 32;
learning rate 0.0047 * (N / 108e6)^(-1/3) = 5.7e-3; weight decay 0.05; warm-up N tokens; cosine to
1 % of the peak.
"""

from dataclasses import replace

from jaxpretrain.data.text import TextData
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo import VARIANTS
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import WarmupCosine
from jaxpretrain.train.experiment import Checkpoint, Experiment, Train


def get_config() -> Experiment:
    """The ladder's rules at 60M."""
    return Experiment(
        model=replace(VARIANTS["olmo_60m"], remat="none"),
        data=TextData(seq_len=2048),
        optim=AdamW(
            schedule=WarmupCosine(start=0.0, peak=5.7e-3, end=5.7e-5, warmup="59318784 tokens"),
            beta1=0.9,
            beta2=0.95,
            epsilon=1e-8,
            weight_decay=0.05,
            decayed=("kernel", "scale"),
            clip_norm=1.0,
        ),
        train=Train(duration="1.2e9 tokens", batch_size=96),
        eval=Eval(every="500 steps"),
        checkpoint=Checkpoint(every="1000 steps"),
    )
