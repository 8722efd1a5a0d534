"""A trained model from a path: what `--checkpoint=DIR` means in every command."""

from dataclasses import dataclass
from pathlib import Path

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.contract import Model, Params
from jaxpretrain.parallel.checkpoint import Checkpoints, CorruptCheckpoint
from jaxpretrain.parallel.mesh import Layout, Mesh
from jaxpretrain.train.experiment import Experiment
from jaxpretrain.train.workdir import read_experiment


@dataclass(frozen=True)
class Trained:
    """Parameters of one step of a run, with the model they belong to."""

    experiment: Experiment
    step: int
    layout: Layout
    model: Model
    params: Params
    tokenizer_path: Path | None


def load_trained(path: Path) -> Trained:
    """Loads `path`, a run's folder (its newest checkpoint) or one of its `checkpoints/<step>`.

    Only the parameters are read, onto the devices at hand.

    Raises:
      InputError: there is no such checkpoint, or it is damaged.
    """
    workdir, step = _find(path)
    experiment = read_experiment(workdir)
    layout = Layout(Mesh().build(jax.devices()))
    model = experiment.model.build(
        experiment.data.example_spec(),
        platform=jax.default_backend(),
        constrain=layout.constrain,
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    like = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        layout.tree(model.axes(), shapes),
    )
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir} has no finished checkpoint yet")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise InputError(f"{workdir} has no finished checkpoint yet")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"{workdir} has no checkpoint of step {step}; it has {steps}")
    try:
        state, _ = checkpoints.restore(step, {"params": like})
    except CorruptCheckpoint as error:
        raise InputError(f"checkpoint {step} of {workdir} is damaged: {error}") from error
    finally:
        checkpoints.close()
    tokenizer = workdir / "tokenizer.json"
    return Trained(
        experiment,
        step,
        layout,
        model,
        state["params"],
        tokenizer if tokenizer.exists() else None,
    )


def _find(path: Path) -> tuple[Path, int | None]:
    """(run's folder, step or None for the newest)."""
    if not path.is_dir():
        raise InputError(f"--checkpoint={path}: no such folder")
    if (path / "experiment.json").exists():
        return path, None
    if path.name.isdecimal() and (path.parent.parent / "experiment.json").exists():
        return path.parent.parent, int(path.name)
    raise InputError(
        f"--checkpoint={path} is neither a run's folder (with experiment.json) nor one of its "
        "checkpoints/<step>"
    )
