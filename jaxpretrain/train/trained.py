"""A trained model from a path: what `--checkpoint=DIR` means in every command."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.contract import Setting
from jaxpretrain.interop.hugging_face import is_hugging_face, open_hugging_face
from jaxpretrain.interop.source import Source
from jaxpretrain.interop.tables import whole
from jaxpretrain.models.contract import Model, Params
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.checkpoint import (
    Checkpoints,
    CorruptCheckpoint,
    Streamed,
    from_named,
    to_named,
)
from jaxpretrain.parallel.mesh import Layout, Mesh
from jaxpretrain.train.experiment import Experiment, resolve
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

    def setting(self) -> Setting:
        """What the run's own evaluators are built from, with its data, which are opened now."""
        data, limits = self.experiment.data, self.model.input_limits()
        batch_size = self.experiment.eval.batch_size or self.layout.num_data
        return Setting(
            model=self.model,
            layout=self.layout,
            params=jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.params
            ),
            source=data,
            data=data.open(seed=self.experiment.seed, limits=limits),
            eval_sets=data.open_evals(limits=limits),
            batch_size=-(-batch_size // self.layout.num_data) * self.layout.num_data,
        )


def load_trained(path: Path) -> Trained:
    """Loads `path`: a run's folder (its newest checkpoint), one of its `checkpoints/<step>`, or a
    Hugging Face folder.

    Only the parameters are read, onto the devices at hand.

    Raises:
      InputError: there is no such checkpoint, or it is damaged.
    """
    if is_hugging_face(path):
        experiment, folder = experiment_of(open_hugging_face(path)), path
    else:
        folder = _find(path, "--checkpoint").workdir
        experiment = read_experiment(folder)
    layout = Layout(Mesh().build(jax.devices()))
    model = experiment.model.build(
        experiment.data.example_spec(),
        platform=jax.default_backend(),
        constrain=layout.constrain,
        shard=layout.shard,
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    like = {
        "params": jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shapes,
            layout.tree(model.axes(), shapes),
        )
    }
    step, named = load_arrays(path, to_named(like), flag="--checkpoint")
    params = from_named(like, named)["params"]
    tokenizer = folder / "tokenizer.json"
    return Trained(
        experiment, step, layout, model, params, tokenizer if tokenizer.exists() else None
    )


def load_arrays(
    path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], *, flag: str
) -> tuple[int, dict[str, jax.Array]]:
    """(step, arrays) of the same paths; only what is wanted is read, onto the devices it says.

    Raises:
      InputError: there is no such checkpoint, it is damaged, or it has other arrays. The line names
        the path by `flag`.
    """
    if not is_hugging_face(path):
        saved = _find(path, flag)
        _check_all_used(saved.names(), wanted, f"{flag}={path}")
        return saved.step, saved.restore(dict(wanted))
    source = open_hugging_face(path)
    arrays = {f"params/{name}": array for name, array in source.params.items()}
    _check_all_used(arrays, wanted, f"{flag}={path}")
    for name, leaf in wanted.items():
        if name not in arrays:
            raise InputError(f"{flag}={path} has no {name}: it is a Hugging Face folder")
        if arrays[name].shape != leaf.shape:
            raise InputError(
                f"{flag}={path} is another model's: {name} is {list(arrays[name].shape)}, not "
                f"{list(leaf.shape)}"
            )
    # An array at a time: on the host, none is held beside the one that goes to the devices.
    return source.step, {
        name: jax.device_put(whole(arrays[name]), leaf.sharding) for name, leaf in wanted.items()
    }


def _check_all_used(names: Iterable[str], wanted: Mapping[str, Any], where: str) -> None:
    """Raises InputError when there are parameters that the model has not: it is another one."""
    unused = [name for name in names if name.startswith("params/") and name not in wanted]
    if unused:
        more = f" and {len(unused) - 1} more" if unused[1:] else ""
        raise InputError(f"{where} is another model's: it has {unused[0]}{more}")


def open_source(path: Path) -> Source:
    """The weights behind the same paths, to be read an array at a time.

    Raises:
      InputError: there is no such checkpoint, or (also later) it is damaged.
    """
    if is_hugging_face(path):
        return open_hugging_face(path)
    saved = _find(path, "--input")
    experiment = read_experiment(saved.workdir)
    arrays, origin = saved.stream()
    prefix = "params/"
    return Source(
        model=experiment.model,
        data=experiment.data,
        step=saved.step,
        params={
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        },
        folder=saved.workdir,
        origin=origin,
    )


def experiment_of(source: Source) -> Experiment:
    """What a folder with the weights of `source` says that it holds; how to train them it cannot
    say, so that is default.
    """
    return resolve(Experiment(model=source.model, data=source.data, optim=AdamW()))


@dataclass(frozen=True)
class _Saved:
    """A checkpoint of a run."""

    workdir: Path
    step: int
    checkpoints: Checkpoints

    def names(self) -> list[str]:
        """Of all its arrays."""
        with self._damage_is_told():
            return list(self.checkpoints.document(self.step)["arrays"])

    def restore(self, like: Any) -> Any:
        with self._damage_is_told():
            return self.checkpoints.restore(self.step, like)[0]

    def stream(self) -> tuple[dict[str, Streamed], dict[str, Any]]:
        """(arrays, what is known of where they came from)."""
        with self._damage_is_told():
            arrays = self.checkpoints.stream(self.step)
            origin = self.checkpoints.document(self.step).get("origin", {})
        return {name: self._told(array) for name, array in arrays.items()}, origin

    def _told(self, array: Streamed) -> Streamed:
        def parts() -> Iterator[np.ndarray]:
            with self._damage_is_told():
                yield from array.parts()

        return replace(array, parts=parts)

    @contextmanager
    def _damage_is_told(self) -> Iterator[None]:
        try:
            yield
        except CorruptCheckpoint as error:
            where = f"checkpoint {self.step} of {self.workdir}"
            raise InputError(f"{where} is damaged: {error}") from error


def _find(path: Path, flag: str) -> _Saved:
    if not path.is_dir():
        raise InputError(f"{flag}={path}: no such folder")
    if (path / "experiment.json").exists():
        workdir, step = path, None
    elif path.name.isdecimal() and (path.parent.parent / "experiment.json").exists():
        workdir, step = path.parent.parent, int(path.name)
    else:
        raise InputError(
            f"{flag}={path} is neither a run's folder (with experiment.json) nor one of its "
            "checkpoints/<step> nor a Hugging Face folder (with config.json)"
        )
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir} has no finished checkpoint yet")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise InputError(f"{workdir} has no finished checkpoint yet")
    if step is not None and step not in steps:
        raise InputError(f"{workdir} has no checkpoint of step {step}; it has {steps}")
    return _Saved(workdir, steps[-1] if step is None else step, checkpoints)
