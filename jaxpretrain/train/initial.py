"""The state that a run begins with: fresh, or from another run's checkpoint.

What is taken from a checkpoint is never made first, so that a model is in memory once.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.train.program import Program
from jaxpretrain.train.state import TrainState
from jaxpretrain.train.trained import load_arrays, require_arrays

_FLAG = "--config.init_from"
_SCHEDULES = ("optimizer/learning_rate/", "optimizer/clip/")
"""Counts of the optimizer for schedules; the rest of its state belongs to the weights."""


def initial_state(program: Program) -> tuple[int, TrainState]:
    """Returns (finished steps, state) of a new run, as `init_from` and `init_with` say.

    InputError: the checkpoint is missing, damaged, another model's, or lacks what is asked for.
    """
    experiment = program.experiment
    if experiment.init_from is None:
        return 0, program.create_state()
    step, taken = load_arrays(Path(experiment.init_from), _wanted(program), flag=_FLAG)
    # The average begins with the weights: a copy, because the step writes into both.
    params = {name.removeprefix("params/"): x for name, x in taken.items() if name[:7] == "params/"}
    if program.state.ema:
        taken |= {f"ema/{name}": jnp.copy(x) for name, x in params.items()}
    named = taken | _fresh(program, without=set(taken))
    if experiment.init_with == "everything":
        counts = [name for name in named if name == "step" or name.startswith(_SCHEDULES)]
        named |= {name: jnp.full_like(named[name], step) for name in counts}
    first = step if experiment.init_with == "everything" else 0
    return first, from_named(program.state, named)


def require_initial_state(program: Program) -> None:
    """Raises InputError, before anything is compiled, where `initial_state` would."""
    if (path := program.experiment.init_from) is not None:
        require_arrays(Path(path), _wanted(program), flag=_FLAG)


def _wanted(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the arrays that are taken from the checkpoint."""
    everything = program.experiment.init_with != "weights"
    prefixes = ("params/", "optimizer/") if everything else ("params/",)
    return {
        name: leaf
        for name, leaf in to_named(program.state).items()
        if name.startswith(prefixes) and not name.startswith(_SCHEDULES)
    }


def _fresh(program: Program, without: set[str]) -> dict[str, jax.Array]:
    """Returns the arrays of a fresh state without some names."""
    like = {name: x for name, x in to_named(program.state).items() if name not in without}

    def rest(seed: jax.Array) -> dict[str, jax.Array]:
        named = to_named(program.init(seed))
        return {name: named[name] for name in like}

    shardings = {name: leaf.sharding for name, leaf in like.items()}
    return jax.jit(rest, out_shardings=shardings)(program.experiment.seed)
