"""The ways to run an experiment on a machine that give the same training.

The microbatch, rematerialisation, the mesh and the kernels change memory and time. They change
neither the data nor the updates, rounding aside.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.schema import value_text
from jaxpretrain.config.serialize import diff, to_dict
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning.estimates import StepTime, estimate_memory, estimate_time
from jaxpretrain.planning.machines import Machine
from jaxpretrain.train.memory import Memory
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.resolved import Resolved

MICROBATCH = "train.microbatch_size"
REMAT = "model.remat"
MESH = ("mesh.replica", "mesh.fsdp", "mesh.tensor")

MAX_TENSOR = 8
"""The most devices that split a matrix product: more than a host has would wait for its network."""

_VALUES: dict[str, tuple[str | int, ...]] = {
    REMAT: ("none", "attention", "dots", "full"),
    "model.attention": ("auto", "xla_blocks"),
    "model.scan_layers": (True, False),
}
DIMENSIONS = (MICROBATCH, REMAT, "mesh", *(name for name in _VALUES if name != REMAT))
"""The fields of a config that a search can choose, and "mesh" for the three of the mesh."""


@dataclass(frozen=True)
class Arrangement:
    """One way to run an experiment, with a microbatch of any of some sizes."""

    program: Program
    machine: Machine
    sizes: tuple[int, ...]
    """Microbatch sizes that divide each device's share of the batch, ascending."""

    def experiment(self, size: int) -> Resolved:
        """Returns the experiment with that microbatch."""
        return self._program(size).experiment

    def memory(self, size: int) -> Memory:
        """Estimates the memory of a step with that microbatch, without compiling it."""
        return estimate_memory(self._program(size))

    def time(self, size: int) -> StepTime:
        """Estimates the time of a step with that microbatch."""
        machine = self.machine
        return estimate_time(self._program(size), machine.chip, num_hosts=machine.num_hosts)

    def _program(self, size: int) -> Program:
        program, experiment = self.program, self.program.experiment
        share = experiment.train.batch_size // program.layout.num_data
        changed = replace(experiment, train=replace(experiment.train, microbatch_size=size))
        return replace(program, experiment=changed, num_microbatches=share // size)


def choose_dimensions(searched: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Returns the dimensions to search, by their short names; [] for microbatch, remat and mesh.

    The fields whose paths are `given`, which the user has set, are not searched. InputError: a name
    is unknown, or that dimension was given too.
    """
    short = {name.rpartition(".")[2]: name for name in DIMENSIONS}
    by_user = {("mesh" if path in MESH else path): path for path in given}
    for name in searched:
        if name not in short:
            hint = nearest(name, short) or f" known: {', '.join(short)}"
            raise InputError(f"--search={name}:{hint}")
        if path := by_user.get(short[name]):
            raise InputError(f"--search={name}, but --config.{path} says what it is")
    names = [short[name] for name in searched] or [MICROBATCH, REMAT, "mesh"]
    return tuple(name for name in names if name not in by_user)


def list_arrangements(
    experiment: Resolved, machine: Machine, searched: Sequence[str]
) -> list[Arrangement]:
    """Lists the arrangements that mesh, batch and model allow; InputError where there is none."""
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
        if MICROBATCH in searched or chosen == "auto":
            found.append(Arrangement(program, machine, _divisors(share)))
        elif share % (chosen or share) == 0:
            found.append(Arrangement(program, machine, (chosen or share,)))
    if not found:
        raise refused or InputError(
            f"train.microbatch_size={experiment.train.microbatch_size} divides no device's share "
            f"of train.batch_size={experiment.train.batch_size}"
        )
    return found


def list_overrides(base: Resolved, chosen: Resolved) -> list[str]:
    """Returns the flags that turn the base experiment into the chosen one."""
    changed = {path: new for path, _, new in diff(to_dict(base), to_dict(chosen))}
    paths = [path for path in (MICROBATCH, *MESH, *_VALUES) if path in changed]
    return [f"--config.{path}={value_text(changed[path])}" for path in paths]


def _candidates(
    experiment: Resolved, num_devices: int, searched: Sequence[str]
) -> Iterator[Resolved]:
    is_open = {REMAT} if experiment.model.remat == "auto" else set()
    names = [name for name in _VALUES if name in is_open.union(searched)]
    meshes = list(_meshes(num_devices)) if "mesh" in searched else [experiment.mesh]
    for mesh, *values in product(meshes, *(_VALUES[name] for name in names)):
        fields = {name.partition(".")[2]: value for name, value in zip(names, values, strict=True)}
        yield replace(experiment, mesh=mesh, model=replace(experiment.model, **fields))


def _meshes(num_devices: int) -> Iterator[Mesh]:
    for tensor in (t for t in _divisors(num_devices) if t <= MAX_TENSOR):
        for fsdp in reversed(_divisors(num_devices // tensor)):
            # fsdp takes the remaining devices, so the same flags serve on a larger machine.
            yield Mesh(replica=num_devices // tensor // fsdp, fsdp=-1, tensor=tensor)


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, number + 1) if number % d == 0)
