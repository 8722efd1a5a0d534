"""The ways to run an experiment on a machine that give the same training.

How the batch is cut, what is recomputed, how devices are arranged and which kernels run change
memory and time, but neither the data nor the updates, rounding aside.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.overrides import apply_overrides
from jaxpretrain.config.schema import value_text
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning.analytic_memory import estimate_memory
from jaxpretrain.planning.machines import Machine
from jaxpretrain.planning.time_model import StepTime, estimate_time
from jaxpretrain.train.experiment import Experiment
from jaxpretrain.train.memory import Memory
from jaxpretrain.train.program import Program, make_program

MICROBATCH = "train.microbatch_size"
REMAT = "model.remat"
MESH = ("mesh.replica", "mesh.fsdp", "mesh.tensor")

MAX_TENSOR = 8
"""Devices that split every matrix product: more than a host has would wait for its network."""

_VALUES: dict[str, tuple[Any, ...]] = {
    REMAT: ("none", "attention", "dots", "full"),
    "model.attention": ("auto", "xla_blocks"),
    "model.loss_chunk": (256, 512, 1024, 2048),
    "model.scan_layers": (True, False),
}
DIMENSIONS = (MICROBATCH, REMAT, "mesh", *(name for name in _VALUES if name != REMAT))
"""What can be searched."""


@dataclass(frozen=True)
class Arrangement:
    """One way to run an experiment, in portions of any size."""

    program: Program
    machine: Machine
    sizes: tuple[int, ...]
    """Microbatches that divide each device's share, ascending."""

    def experiment(self, size: int) -> Experiment:
        """With that microbatch."""
        return self._program(size).experiment

    def memory(self, size: int) -> Memory:
        """As estimated from the shapes alone."""
        return estimate_memory(self._program(size))

    def time(self, size: int) -> StepTime:
        """Of one step."""
        machine = self.machine
        return estimate_time(self._program(size), machine.chip, num_hosts=machine.num_hosts)

    def _program(self, size: int) -> Program:
        experiment = self.program.experiment
        share = experiment.train.batch_size // self.program.layout.num_data
        train = replace(experiment.train, microbatch_size=size)
        return replace(
            self.program,
            experiment=replace(experiment, train=train),
            num_microbatches=share // size,
        )


def dimensions(searched: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """What is searched: `searched`, or by default all that the user has not `given`.

    Raises:
      InputError: there is no such dimension, or it is given and to be searched.
    """
    short = {name.rpartition(".")[2]: name for name in DIMENSIONS}
    by_user = {("mesh" if path in MESH else path): path for path in given}
    for name in searched:
        if name not in short:
            known = f" known: {', '.join(short)}"
            raise InputError(f"--search={name}:{nearest(name, short) or known}")
        if path := by_user.get(short[name]):
            raise InputError(f"--search={name}, but --config.{path} says what it is")
    names = [short[name] for name in searched] or [MICROBATCH, REMAT, "mesh"]
    return tuple(name for name in names if name not in by_user)


def arrangements(
    experiment: Experiment, machine: Machine, searched: Sequence[str]
) -> list[Arrangement]:
    """All ways that the mesh, the batch and the model allow.

    Raises:
      InputError: there is none.
    """
    found, refused = [], None
    for candidate in _candidates(experiment, len(machine.devices), searched):
        whole = replace(candidate.train, microbatch_size=None)
        try:
            program = make_program(replace(candidate, train=whole), machine.devices)
        except InputError as error:
            refused = error
            continue
        share = candidate.train.batch_size // program.layout.num_data
        chosen = candidate.train.microbatch_size
        sizes = (
            _divisors(share) if MICROBATCH in searched or chosen == "auto" else (chosen or share,)
        )
        found.append(Arrangement(program, machine, tuple(s for s in sizes if share % s == 0)))
    found = [arrangement for arrangement in found if arrangement.sizes]
    if not found:
        raise refused or InputError(
            f"train.microbatch_size={experiment.train.microbatch_size} divides no device's share "
            f"of train.batch_size={experiment.train.batch_size}"
        )
    return found


def overrides(base: Experiment, chosen: Experiment) -> list[str]:
    """The flags that make the one of the other."""
    paths = (MICROBATCH, *MESH, *_VALUES)
    pairs = [(path, _at(base, path), _at(chosen, path)) for path in paths]
    return [f"--config.{path}={value_text(new)}" for path, old, new in pairs if old != new]


def _candidates(
    experiment: Experiment, num_devices: int, searched: Sequence[str]
) -> Iterator[Experiment]:
    names = [
        name
        for name in _VALUES
        if name in searched or (name == REMAT and experiment.model.remat == "auto")
        if hasattr(experiment.model, name.partition(".")[2])
    ]
    meshes = list(_meshes(num_devices)) if "mesh" in searched else [experiment.mesh]
    for mesh, *values in product(meshes, *(_VALUES[name] for name in names)):
        texts = [(name, value_text(value)) for name, value in zip(names, values, strict=True)]
        yield replace(apply_overrides(experiment, texts), mesh=mesh)


def _meshes(num_devices: int) -> Iterator[Mesh]:
    for tensor in (t for t in _divisors(num_devices) if t <= MAX_TENSOR):
        for fsdp in reversed(_divisors(num_devices // tensor)):
            # fsdp as what is left: so the same flags serve where there are more devices.
            yield Mesh(replica=num_devices // tensor // fsdp, fsdp=-1, tensor=tensor)


def _divisors(number: int) -> tuple[int, ...]:
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*low, *(number // d for d in low)}))


def _at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config
