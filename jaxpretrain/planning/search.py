"""The ways to run an experiment that give the same training, and the search for the fastest.

The microbatch, rematerialisation, the mesh and the kernels change memory and time. They change
neither the data nor the updates, rounding aside. Estimates rank all arrangements. The best of each
remat policy is compiled: at the largest microbatch that should fit and at the next one, until one
fits and the next does not. Every result corrects the estimates of its arrangement, so two
compilations are mostly enough.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.config.schema import value_text
from jaxpretrain.config.serialize import diff, to_dict
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.parallel.mesh import Mesh, count_slices
from jaxpretrain.planning.compiled import Compiled, Compiler
from jaxpretrain.planning.estimates import StepTime, estimate_memory, estimate_time
from jaxpretrain.planning.machines import Machine
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import Memory, Program, make_program

MICROBATCH = "train.microbatch_size"
REMAT = "model.remat"
SCAN = "model.scan_layers"
MESH = ("mesh.replica", "mesh.fsdp", "mesh.tensor")

MAX_TENSOR = 8
"""The most devices that split a matrix product: more than a host has would wait for its network."""

_ALIKE = 1.02
"""Plans whose times differ by less are alike: the one that takes least memory is the best."""

HOPELESS = 1.5
"""A step that is estimated to take this many times the limit is not compiled: it would not fit, and
XLA spends minutes on saving memory."""

_VALUES: dict[str, tuple[str | int, ...]] = {
    REMAT: ("none", "attention", "dots", "full"),
    "model.attention": ("auto", "xla_blocks"),
    SCAN: (True, False),
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


def open_choices(experiment: Resolved) -> tuple[str, ...]:
    """Returns the paths of the fields that are auto."""
    chosen = {
        MICROBATCH: experiment.train.microbatch_size,
        REMAT: experiment.model.remat,
        "mesh": experiment.mesh,
    }
    return tuple(name for name, value in chosen.items() if value == "auto")


def choose_dimensions(searched: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Returns the dimensions to search, by their short names; [] for microbatch, remat, mesh and
    the scan of layers.

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
    names = [short[name] for name in searched] or [MICROBATCH, REMAT, "mesh", SCAN]
    return tuple(name for name in names if name not in by_user)


def list_arrangements(
    experiment: Resolved, machine: Machine, searched: Sequence[str]
) -> list[Arrangement]:
    """Lists the arrangements that mesh, batch and model allow; InputError where there is none."""
    found, refused = [], None
    for candidate in _candidates(experiment, machine, searched):
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
    experiment: Resolved, machine: Machine, searched: Sequence[str]
) -> Iterator[Resolved]:
    wanted = {*open_choices(experiment), *searched}
    names = [name for name in _VALUES if name in wanted]
    devices = machine.devices
    found = _meshes(len(devices), count_slices(devices)) if "mesh" in wanted else [experiment.mesh]
    meshes = list(found)
    for mesh, *values in product(meshes, *(_VALUES[name] for name in names)):
        fields = {name.partition(".")[2]: value for name, value in zip(names, values, strict=True)}
        model = replace(experiment.model, **fields)
        if REMAT not in wanted or _is_sensible(model, is_free=SCAN in wanted):
            yield replace(experiment, mesh=mesh, model=model)


def _is_sensible(model: Decoder | VitMae, *, is_free: bool) -> bool:
    """Returns False for ways to run the layers that cannot be the best.

    A scan that recomputes nothing keeps float32 for each layer: several times what `dots` keeps,
    which has the same products. Where `is_free` says that layers may be scanned, those that are
    recomputed are: XLA recomputes unrolled ones too early, so that three times as much is kept.
    """
    if model.scan_layers:
        return model.remat != "none"
    return model.remat in ("none", "dots") or not is_free


def _meshes(num_devices: int, num_slices: int) -> Iterator[Mesh]:
    """Yields the meshes of devices; where there are several slices, a copy of the model on each."""
    for tensor in (t for t in _divisors(num_devices) if t <= MAX_TENSOR):
        for fsdp in reversed(_divisors(num_devices // tensor)):
            replica = num_devices // tensor // fsdp
            if num_slices in (1, replica):
                # fsdp takes the remaining devices, so the same flags serve on a larger machine.
                yield Mesh(replica=replica, fsdp=-1, tensor=tensor)


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, number + 1) if number % d == 0)


_NUM_COMPILED = 5
"""The most arrangements that are compiled, usually at two sizes each."""


@dataclass(frozen=True)
class Trial:
    """One arrangement with a microbatch of one size."""

    experiment: Resolved
    size: int
    """The examples of a microbatch."""
    total: int
    """Bytes that a device holds at its peak, compiled or estimated."""
    memory: Memory
    """The parts of the total, estimated where the compiler gave none."""
    time: StepTime
    compiled: Compiled | None
    """The result of the compiler; None where `total` is an estimate."""
    is_largest: bool
    """True where the next larger microbatch does not fit or does not exist."""

    def fits(self, limit: int) -> bool:
        """Returns True if `limit` bytes suffice, compiled or else estimated."""
        return self.total <= limit if self.compiled is None else self.compiled.fits(limit)


def make_trial(
    arrangement: Arrangement, size: int, compiled: Compiled | None, *, is_largest: bool
) -> Trial:
    """Returns the trial of an arrangement at a microbatch size; estimated if not compiled."""
    memory = (compiled and compiled.memory) or arrangement.memory(size)
    total = memory.total if compiled is None else compiled.total
    experiment, seconds = arrangement.experiment(size), arrangement.time(size)
    return Trial(experiment, size, total, memory, seconds, compiled, is_largest)


def search(
    found: Sequence[Arrangement],
    limit: int,
    compiler: Compiler | None,
    *,
    goal: Literal["frontier", "fastest"] = "frontier",
    deadline: float,
) -> list[Trial]:
    """Returns the trials that fit `limit` bytes of a device, the fastest first; [] where none does.

    Without a compiler the estimates are the result. The goal "frontier" tries every remat policy;
    "fastest" stops when no other estimate is faster than a trial that fits. Nothing more is
    compiled after the deadline, a time of `time.monotonic`.
    """
    trials_of = [(arrangement, _estimated(arrangement, limit)) for arrangement in found]
    hopeless = [arrangement for arrangement, trial in trials_of if trial is None]
    estimated = [(arrangement, trial) for arrangement, trial in trials_of if trial is not None]
    estimated.sort(key=lambda pair: _rank(pair[1]))
    if compiler is None:
        return _ranked([trial for _, trial in estimated])
    fitting: list[tuple[Arrangement, Trial]] = []

    def try_largest(arrangement: Arrangement) -> None:
        found = _largest_that_fits(arrangement, limit, compiler, deadline)
        fitting.extend((arrangement, trial) for trial in found)

    for arrangement, estimate in _chosen(estimated):
        fastest = min((_rank(trial) for _, trial in fitting), default=None)
        is_over = goal == "fastest" and fastest is not None and fastest <= _rank(estimate)
        if is_over or time.monotonic() > deadline:
            break
        try_largest(arrangement)
    # Estimates may be too high. Where nothing else fits, the least of the others is tried.
    if hopeless and not fitting and time.monotonic() <= deadline:
        try_largest(min(hopeless, key=lambda a: a.memory(a.sizes[0]).total))
    trials = [trial for _, trial in fitting]
    if fitting and time.monotonic() <= deadline:
        trials += _roomier(*min(fitting, key=lambda pair: _rank(pair[1])), limit, compiler)
    return _ranked(trials)


def _ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Sorts by time; before all, the one that takes least memory of those alike the fastest."""
    ranked = sorted(trials, key=_rank)
    alike = [t for t in ranked if t.time.expected <= _ALIKE * ranked[0].time.expected]
    best = min(alike, key=lambda trial: trial.total, default=None)
    return ranked if best is None else [best, *(t for t in ranked if t is not best)]


def _rank(trial: Trial) -> tuple[float, int]:
    """Ranks by time to three digits, then by memory."""
    return float(f"{trial.time.expected:.3g}"), trial.total


def _chosen(ranked: Sequence[tuple[Arrangement, Trial]]) -> list[tuple[Arrangement, Trial]]:
    """Returns the best of each remat policy, scanned and unrolled, then the next best.

    They are in the order of their rank.
    """
    seen: set[tuple[str, bool]] = set()
    first, others = [], []
    for rank, (arrangement, _) in enumerate(ranked):
        model = arrangement.program.experiment.model
        way = model.remat, model.scan_layers
        (others if way in seen else first).append(rank)
        seen.add(way)
    return [ranked[rank] for rank in sorted([*first, *others][:_NUM_COMPILED])]


def _estimated(arrangement: Arrangement, limit: int) -> Trial | None:
    """Returns the trial at the largest microbatch that should fit."""
    for size in reversed(arrangement.sizes):
        if arrangement.memory(size).total <= limit:
            is_largest = size == arrangement.sizes[-1]
            return make_trial(arrangement, size, None, is_largest=is_largest)
    return None


def _largest_that_fits(
    arrangement: Arrangement, limit: int, compiler: Compiler, deadline: float
) -> list[Trial]:
    """Returns the trial at the largest microbatch that fits; [] where the smallest does not."""
    sizes = arrangement.sizes
    estimates = [arrangement.memory(size).total for size in sizes]
    results: dict[int, Compiled] = {}  # by index of the size
    low, high = -1, len(sizes)  # the size at `low` fits, the size at `high` does not

    def is_worth_it(index: int) -> bool:
        return _corrected(estimates, results, index) <= HOPELESS * limit

    while high - low > 1 and time.monotonic() < deadline:
        between = range(low + 1, high)
        fitting = [i for i in between if _corrected(estimates, results, i) <= limit]
        guess = max(fitting, default=low + 1)
        indices = [guess]
        if guess + 1 < high and compiler.num_workers > 1 and is_worth_it(guess + 1):
            indices.append(guess + 1)
        compiled = compiler.compile([arrangement.experiment(sizes[i]) for i in indices])
        results |= dict(zip(indices, compiled, strict=True))
        for index, result in zip(indices, compiled, strict=True):
            if result.fits(limit):
                low = max(low, index)
            else:
                high = min(high, index)
        if 0 <= low < high - 1 and not is_worth_it(low + 1):
            high = low + 1
    if low < 0:
        return []
    return [make_trial(arrangement, sizes[low], results[low], is_largest=high - low == 1)]


def _roomier(arrangement: Arrangement, trial: Trial, limit: int, compiler: Compiler) -> list[Trial]:
    """Returns the trial of the next smaller microbatch; [] where it is slower, or not needed.

    Only a trial that takes more than half of the limit needs more room.
    """
    size = max((size for size in arrangement.sizes if size < trial.size), default=None)
    if size is None or trial.total <= limit / 2:
        return []
    if arrangement.time(size).expected > _ALIKE * trial.time.expected:
        return []
    (compiled,) = compiler.compile([arrangement.experiment(size)])
    fits = compiled.fits(limit)
    return [make_trial(arrangement, size, compiled, is_largest=False)] if fits else []


def _corrected(estimates: Sequence[int], results: dict[int, Compiled], index: int) -> float:
    """Returns the estimate for a size, corrected by the nearest compiled ones."""
    if not results:
        return estimates[index]
    near = sorted(results, key=lambda i: abs(i - index))[:2]
    first, second = near[0], near[-1]
    at, span = results[first].total, estimates[second] - estimates[first]
    slope = (results[second].total - at) / span if span else 1.0
    return at + slope * (estimates[index] - estimates[first])
