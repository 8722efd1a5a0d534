"""A trained model from a path, as `--checkpoint=DIR` of all commands names it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.streamed import CorruptCheckpoint, Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document
from jaxpretrain.data.contract import EvalSet
from jaxpretrain.evals.contract import Setting
from jaxpretrain.interop.hugging_face import is_hugging_face, open_hugging_face
from jaxpretrain.interop.source import TOKENIZER_FILES, Source, refuse_olmo_core
from jaxpretrain.interop.tables import whole
from jaxpretrain.models.contract import Model, Params
from jaxpretrain.models.scaling import Scaled
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.mesh import Layout, Mesh
from jaxpretrain.storage.copies import local_copy
from jaxpretrain.storage.paths import is_remote
from jaxpretrain.train.experiment import Experiment, Resolved, resolve
from jaxpretrain.train.program import build_model
from jaxpretrain.train.workdir import read_eos_id, read_experiment

_PARAMS, _AVERAGE = "params/", "ema/"

Weights = Literal["plain", "average"]
"""The trained weights themselves, or their average over steps (`train.ema`)."""


@dataclass(frozen=True)
class Trained:
    """The parameters of one step of a run, with their model."""

    experiment: Resolved
    step: int
    layout: Layout
    model: Model
    params: Params
    tokenizer_path: Path | None
    end_ids: tuple[int, ...]
    """The tokens that end a text, by the data or the model's files; (): they are not known."""
    weights: Weights | None
    """The kind of these weights where the run keeps an average; None: there is only one kind."""

    def setting(self, eval_sets: Sequence[EvalSet]) -> Setting:
        """Returns what evaluators are built from, with one example on a device at a time."""
        return Setting(
            model=self.model,
            layout=self.layout,
            params=jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.params
            ),
            source=self.experiment.data,
            eval_sets=eval_sets,
            batch_size=self.layout.num_data,
            tokenizer_path=self.tokenizer_path,
            end_ids=self.end_ids,
        )


def load_trained(path: Path, weights: Weights | None = None) -> Trained:
    """Loads a run's newest checkpoint, one of its `checkpoints/<step>`, or a Hugging Face folder.

    Only the parameters are read, onto the devices at hand. Without `weights`, they are the weights
    that the run evaluates (`train.ema.evaluate`). InputError: there is no such checkpoint, it is
    damaged, or it has no average.
    """
    with _opened(path, "--checkpoint") as found:
        experiment = found.experiment()
        layout = Layout(Mesh().build(jax.devices()))
        model = build_model(experiment, layout)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        like = {
            "params": jax.tree.map(
                lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
                shapes,
                layout.tree(model.axes(), shapes),
            )
        }
        weights = found.choose(weights)
        stored = _AVERAGE if weights == "average" else _PARAMS
        named = found.load(to_named(like), f"--checkpoint={path}", stored)
        tokenizer = token_files(found.folder) / "tokenizer.json"
        return Trained(
            experiment=experiment,
            step=found.step,
            layout=layout,
            model=model,
            params=from_named(like, named)["params"],
            tokenizer_path=tokenizer if tokenizer.exists() else None,
            end_ids=found.source(weights).end_ids(),
            weights=weights,
        )


def load_arrays(
    path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], *, flag: str
) -> tuple[int, dict[str, jax.Array]]:
    """Returns (step, wanted arrays) of the checkpoint at a path, on the devices that are wanted.

    Raises InputError, which names the path by `flag`, where there is no such checkpoint, it is
    damaged, or it has other arrays.
    """
    with _opened(path, flag) as found:
        return found.step, found.load(wanted, f"{flag}={path}")


def require_arrays(
    path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], model: Scaled, *, flag: str
) -> None:
    """Raises InputError where `load_arrays` would, except for damage that only reading finds.

    Weights that `model` multiplies by other factors than theirs did are refused too.
    """
    with _opened(path, flag) as found:
        found.check(wanted, f"{flag}={path}")
        theirs: Scaled = found.experiment().model
        if theirs.growth != model.growth:
            raise InputError(
                f"{flag}={path}: its weights are of {theirs.describe_base()}, and a model of "
                f"{model.describe_base()} multiplies them by other factors; take weights of the "
                "same scaling and base"
            )


def checkpoint_behind(path: Path, flag: str) -> tuple[Path, int, Document] | None:
    """Returns (folder of the run, step, document) of the checkpoint at a path.

    None stands for a Hugging Face folder. Raises as `load_arrays` does.
    """
    with _opened(path, flag) as found:
        return (found.folder, found.step, found.document()) if isinstance(found, _Saved) else None


def open_source(path: Path, weights: Weights | None = None) -> Source:
    """Opens the weights of the checkpoint at a path, to be read an array at a time.

    InputError: there is no such checkpoint, it has no average, or (also later) it is damaged.
    """
    with _opened(path, "--input") as found:
        return found.source(found.choose(weights))


def token_files(folder: Path) -> Path:
    """Returns a folder of this machine with the tokenizer of a run: its own, or that of copies."""
    if not is_remote(folder) or not any((folder / name).exists() for name in TOKENIZER_FILES):
        return folder
    return local_copy(folder, TOKENIZER_FILES.__contains__)


def experiment_of(source: Source) -> Resolved:
    """Returns the model and data of weights as an experiment; all about training is default."""
    return resolve(Experiment(model=source.model, data=source.data, optim=AdamW()))


class _HuggingFace:
    """A Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._source = open_hugging_face(folder)
        self.step = self._source.step

    def experiment(self) -> Resolved:
        return experiment_of(self._source)

    def choose(self, weights: Weights | None) -> None:
        if weights == "average":
            raise InputError(
                f"--weights=average: {self.folder} is a Hugging Face folder, which has no average"
            )

    def source(self, weights: Weights | None) -> Source:
        return self._source

    def load(
        self, wanted: Mapping[str, jax.ShapeDtypeStruct], where: str, stored: str = _PARAMS
    ) -> dict[str, jax.Array]:
        arrays = self.check(wanted, where)
        # An array at a time: on the host, none is held beside the one that goes to the devices.
        return {
            name: jax.device_put(whole(arrays[name]), leaf.sharding)
            for name, leaf in wanted.items()
        }

    def check(self, wanted: Mapping[str, jax.ShapeDtypeStruct], where: str) -> dict[str, Streamed]:
        arrays = {f"{_PARAMS}{name}": array for name, array in self._source.params.items()}
        _check_all_used(arrays, wanted, where)
        for name, leaf in wanted.items():
            if name not in arrays:
                raise InputError(f"{where} has no {name}: it is a Hugging Face folder")
            if arrays[name].shape != leaf.shape:
                raise InputError(
                    f"{where} is another model's: {name} is {list(arrays[name].shape)}, not "
                    f"{list(leaf.shape)}"
                )
        return arrays


@dataclass(frozen=True)
class _Saved:
    """A checkpoint of a run. Its methods raise CorruptCheckpoint where it is damaged."""

    folder: Path
    step: int
    checkpoints: Checkpoints

    def experiment(self) -> Resolved:
        return read_experiment(self.folder)

    def document(self) -> Document:
        return self.checkpoints.document(self.step)

    def choose(self, weights: Weights | None) -> Weights | None:
        """Returns the wanted weights, or else the weights that the run evaluates."""
        if any(name.startswith(_AVERAGE) for name in self.document()["arrays"]):
            ema = self.experiment().train.ema
            return weights or ("average" if ema is not None and ema.evaluate else "plain")
        if weights == "average":
            raise InputError(
                f"--weights=average: checkpoint {self.step} of {self.folder} has no average of the "
                "weights; it was trained without train.ema"
            )
        return None

    def source(self, weights: Weights | None) -> Source:
        experiment, stored = self.experiment(), _AVERAGE if weights == "average" else _PARAMS
        return Source(
            model=experiment.model,
            data=experiment.data,
            step=self.step,
            params={
                name.removeprefix(stored): self._guarded(array)
                for name, array in self.checkpoints.stream(self.step).items()
                if name.startswith(stored)
            },
            folder=token_files(self.folder),
            origin=self.document().get("origin", {}),
            eos_id=read_eos_id(self.folder),
            weights=weights,
        )

    def load(
        self, wanted: Mapping[str, jax.ShapeDtypeStruct], where: str, stored: str = _PARAMS
    ) -> dict[str, jax.Array]:
        """Returns the arrays; parameters are read from names with the prefix `stored`."""
        places = {name: name.replace(_PARAMS, stored, 1) for name in wanted}
        there = {places[name]: leaf for name, leaf in wanted.items()}
        _check_all_used(self.document()["arrays"], wanted, where)
        arrays = self.checkpoints.restore(self.step, there)[0]  # which checks the arrays
        return {name: arrays[place] for name, place in places.items()}

    def check(self, wanted: Mapping[str, jax.ShapeDtypeStruct], where: str) -> None:
        arrays = self.document()["arrays"]
        _check_all_used(arrays, wanted, where)
        self.checkpoints.check_arrays(self.step, wanted, arrays)

    def _guarded(self, array: Streamed) -> Streamed:
        def parts() -> Iterator[np.ndarray]:
            with _naming_damage(self):
                yield from array.parts()

        return replace(array, parts=parts)


def _check_all_used(names: Iterable[str], wanted: Mapping[str, object], where: str) -> None:
    """Raises InputError where there are parameters that the model does not have."""
    unused = [name for name in names if name.startswith(_PARAMS) and name not in wanted]
    if unused:
        more = f" and {len(unused) - 1} more" if unused[1:] else ""
        raise InputError(f"{where} is another model's: it has {unused[0]}{more}")


@contextmanager
def _naming_damage(found: _Saved | _HuggingFace) -> Iterator[None]:
    try:
        yield
    except CorruptCheckpoint as error:
        where = f"checkpoint {found.step} of {found.folder}"
        raise InputError(f"{where} is damaged: {error}") from error


@contextmanager
def _opened(path: Path, flag: str) -> Iterator[_Saved | _HuggingFace]:
    """Yields what lies at a path; damage that is found inside is an InputError."""
    refuse_olmo_core(path)
    found = _HuggingFace(local_copy(path)) if is_hugging_face(path) else _find_saved(path, flag)
    with _naming_damage(found):
        yield found


def _find_saved(path: Path, flag: str) -> _Saved:
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
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise InputError(f"{workdir} has no finished checkpoint yet")
    if step is not None and step not in steps:
        raise InputError(f"{workdir} has no checkpoint of step {step}; it has {steps}")
    return _Saved(workdir, steps[-1] if step is None else step, checkpoints)
