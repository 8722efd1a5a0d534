"""The 60M model of OLMo's ladder on your own token files: one GPU, an afternoon.

Command   python -m jaxpretrain.main --config=configs/olmo_60m.py --workdir=DIR \
              --config.data.root=TOKEN_FILES
Hardware  a100-40gb:1, or less memory and smaller microbatches: 85M parameters with the untied,
          padded embeddings.
Hours     not measured; 1.2B tokens, twenty for each parameter.
Result    a model to try ideas on; OLMo's ladder predicts larger models from such losses.

The rules are those of `olmo_ladder.py`; this is its `60m`.
"""

from pathlib import Path

from jaxpretrain.api import Experiment, load_config


def get_config() -> Experiment:
    """The ladder's rules at 60M."""
    return load_config(f"{Path(__file__).with_name('olmo_ladder.py')}:60m")
