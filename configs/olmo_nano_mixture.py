"""The small OLMo of `olmo_nano.py` on a mixture: presidential messages and Python's own source.

Command   python -m jaxpretrain.main --config=configs/olmo_nano_mixture.py --workdir=runs/mixture
Hardware  cpu:1, two cores.

Seven parts of messages to three of the standard library of the Python that runs it; for the last
fifth of the run, nineteen to one. Both have the messages' tokenizer, and a validation split each.
Other weights: `--config.data.sources.python.weight=0.5`.
"""

import sysconfig
from dataclasses import replace
from pathlib import Path

from jaxpretrain.api import (
    Experiment,
    Mixture,
    MixtureSource,
    MixtureStage,
    PrepareText,
    load_config,
)


def get_config() -> Experiment:
    """`olmo_nano.py` on two sources."""
    nano = load_config(str(Path(__file__).with_name("olmo_nano.py")))
    library = f"{sysconfig.get_path('stdlib')}/*.py"
    data = Mixture(
        sources={
            "sotu": MixtureSource(prepare=nano.data.prepare, weight=0.7),
            "python": MixtureSource(
                prepare=PrepareText(files=(library,), name="python"), weight=0.3
            ),
        },
        stages=(MixtureStage(at="800 steps", weights={"sotu": 0.95, "python": 0.05}),),
        tokenizer_of="sotu",
        seq_len=nano.data.seq_len,
    )
    return replace(nano, data=data)
