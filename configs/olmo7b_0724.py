"""OLMo-7B, the edition of July 2024: by its YAML, the edition of April.

Command   python -m jaxpretrain.main --config=configs/olmo7b_0724.py --workdir=DIR \
              --config.data.root=TOKEN_FILES --config.data.file_list=LIST
Hardware  h100-80gb:16x8 or more: 6.9e9 parameters, 4.2M tokens a step.
Hours     about 93,000 H100-hours: 3e12 tokens at 9,000 tokens/s a GPU (issue 823 of allenai/OLMo).
Result    not published as a training loss.

Source: configs/official-0724/OLMo-7B-0724.yaml of allenai/OLMo, which equals OLMo-7B-0424.yaml byte
for byte, the name of the run included. What was done differently is not recorded there; so this is
`olmo7b_0424.py` under the name of the other release, and as uncertain.
"""

from pathlib import Path

from jaxpretrain.api import Experiment, load_config


def get_config() -> Experiment:
    """What is recorded of it."""
    return load_config(str(Path(__file__).with_name("olmo7b_0424.py")))
