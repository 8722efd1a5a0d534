"""The size and the length of a run, from its config alone."""

from dataclasses import dataclass, replace

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.models.contract import count_computing
from jaxpretrain.train.experiment import Resolved, resolve


@dataclass(frozen=True)
class Size:
    """The parameters N and the tokens D that laws are about."""

    parameters: int
    """All parameters but those of the embedding, which take no arithmetic."""
    tokens: int
    """The tokens of all steps."""


def size_of(experiment: Resolved) -> Size:
    """Returns the size of a run; nothing is allocated and no data is opened.

    Raises:
      InputError: the model reads no tokens.
    """
    # The kernel of attention has no parameters, and not each is at hand here.
    config = replace(experiment.model, attention="auto")
    model = config.build(experiment.data.example_spec(), platform="cpu")
    unit, per_example = model.units_per_example()
    if unit != "tokens":
        raise InputError(f"scaling laws are about tokens, and this model reads {unit}")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    timeline = experiment.timeline
    tokens = round(timeline.pace.examples(timeline.num_steps) * per_example)
    return Size(count_computing(shapes), tokens)


def configured(spec: str, overrides: tuple[tuple[str, str], ...] = ()) -> Resolved:
    """Returns the experiment of a config with overrides, its durations in whole steps.

    Raises:
      InputError: there is no such config, or an override is wrong.
    """
    return resolve(apply_overrides(load_config(spec), overrides))
