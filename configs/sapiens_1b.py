"""Sapiens 1B as published: masked autoencoding of people at 1,024 pixels, from scratch.

Command   python -m jaxpretrain.main --config=configs/sapiens_1b.py --workdir=DIR \
              --config.data.source.root=FOLDER_OF_IMAGES
Hardware  a100-80gb:8 or more hosts like it, or a TPU slice: 1.17e9 parameters, decoder and
          tables of positions included, as the model card counts them.
Cost      9.23 TFLOP an image, forward and backward; 2.8e21 for 300 million images.
Hours     about 1,900 H100-hours at the 43 images/s a GPU that 40 % of its peak would be.
Result    none is published. Features are judged by fine-tuning; compare the probe with a random
          encoder's, and the loss with `loss_predict_zero`.

Source: the recipe of `sapiens_0_3b.py`, which says where its numbers come from; of the published
ones only the model differs. The released weights are of epoch 173. The paper's batches (40,960
here, from memory) would make the learning rate 0.024, which nobody has confirmed: scaling ends at
16.
"""

from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import SAPIENS_SIZES, Experiment, load_config


def get_config() -> Experiment:
    """The published hyperparameters."""
    recipe = load_config(str(Path(__file__).with_name("sapiens_0_3b.py")))
    return replace(recipe, model=replace(SAPIENS_SIZES["sapiens_1b"], remat=recipe.model.remat))
