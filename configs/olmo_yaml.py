"""A run of OLMo's own trainer, from its YAML file.

Command   python -m jaxpretrain.main --config=configs/olmo_yaml.py:FILE.yaml --workdir=DIR \
              --config.data.root=TOKEN_FILES
Hardware  as the YAML's run.
Result    the same run, as far as it is recorded; each key is a line on standard error: used,
          without effect here, or ignored.

A key that changes the result and is not supported ends the command. To train without what it says:
`:FILE.yaml,ignore=KEY`, and again `,ignore=KEY` for another. The paths of the data, with their
scheme and host taken off, lie below data.root. OLMo's trainer takes ten steps more than
`max_duration` says, unless `stop_at` says when; here the run ends when `max_duration` does.
"""

import sys
from pathlib import Path

from jaxpretrain.api import Experiment, InputError, read_olmo_yaml


def get_config(argument: str) -> Experiment:
    """The run of "FILE.yaml" or "FILE.yaml,ignore=KEY,ignore=KEY"."""
    file, *options = argument.split(",")
    if strange := [option for option in options if not option.startswith("ignore=")]:
        raise InputError(f"{strange[0]}: after the file, write ignore=KEY")
    ignored = [option.removeprefix("ignore=") for option in options]
    experiment, report = read_olmo_yaml(Path(file), ignored)
    for line in report:
        print(f"{file}: {line}", file=sys.stderr)
    return experiment
