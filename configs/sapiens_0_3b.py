"""Sapiens 0.3B as published: masked autoencoding of people at 1,024 pixels, from scratch.

Command   python -m jaxpretrain.main --config=configs/sapiens_0_3b.py --workdir=DIR \
              --config.data.source.root=FOLDER_OF_IMAGES
Hardware  a100-80gb:8 or more hosts like it, or a TPU slice: 0.336e9 parameters, decoder and
          tables of positions included, as the model card counts them.
Cost      3.64 TFLOP an image, forward and backward; 1.1e21 for 300 million images.
Hours     about 760 H100-hours at the 109 images/s a GPU that 40 % of its peak would be.
Result    none is published. Features are judged by fine-tuning; compare the probe with a random
          encoder's, and the loss with `loss_predict_zero`.

Source: facebookresearch/sapiens, pretrain/configs/sapiens_mae/humans_300m_test. The paper's 1.2e12
tokens are one pass over 300 million images, its data are not public, and its 18 days on 1,024 GPUs
for the 2B would be 1 % of their peak at that budget: no speed follows from it. The config names
1,600 nominal epochs with 40 of warm-up, here the same share of the images; the released weights are
of epoch 1600. Its learning rate is 1.5e-4 times batch / 256, for a batch of 4,096. The paper's
batches (98,304 here, from memory) would make that 0.058, which nobody has confirmed:
scaling ends at 16.
Not copied: non-finite gradients set to zero, a warm-up that ends a step early, float16 by option.
"""

from dataclasses import replace

from jaxpretrain.api import (
    SAPIENS_SIZES,
    AdamW,
    Augment,
    Checkpoint,
    Eval,
    Experiment,
    Folder,
    HashedOrder,
    ImageData,
    RateScaling,
    Reconstructions,
    Train,
    WarmupCosine,
)


def get_config() -> Experiment:
    """The published hyperparameters."""
    return Experiment(
        model=replace(
            SAPIENS_SIZES["sapiens_0_3b"],
            mask_ratio=0.75,
            normalize_patches=True,
            positions="sincos",
            dtype="bfloat16",
            remat="auto",
        ),
        data=ImageData(
            source=Folder(),
            size=1024,
            augment=Augment(area=(0.2, 1.0), aspect=(3 / 4, 4 / 3), flip=0.5),
            order=HashedOrder(),
            num_workers=8,
        ),
        optim=AdamW(
            # The start is 1e-4 of the peak; the rates are for a batch of 256.
            schedule=WarmupCosine(start=1.5e-8, peak=1.5e-4, end=0.0, warmup="7.5e6 images"),
            rate_scaling=RateScaling(base_batch=256, cap=16.0),
            betas=(0.9, 0.95),
            epsilon=1e-8,
            weight_decay=0.05,
            decayed=("kernel",),
            clip_norm=1.0,
        ),
        train=Train(duration="300e6 images", batch_size=4096, microbatch_size="auto"),
        eval=Eval(every="2000 steps", max_examples=8192, samples=Reconstructions()),
        checkpoint=Checkpoint(every="1000 steps", keep_last=2, keep_every="10000 steps"),
        seed=0,
    )
