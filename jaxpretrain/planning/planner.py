"""The plan of an experiment on a machine: whether it fits, how fast it is, how long it takes.

The experiment as configured is compiled first; then a search looks for faster ways to run it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning import search
from jaxpretrain.planning.compiled import Compiler
from jaxpretrain.planning.estimates import estimate_memory
from jaxpretrain.planning.machines import Machine, Target, next_larger, placeholder_devices
from jaxpretrain.train.experiment import Resolved
from jaxpretrain.train.program import make_program

_MAX_DOUBLINGS = 12


@dataclass(frozen=True)
class Plan:
    """The memory and time of an experiment on a machine, and the best ways to run it there."""

    machine: Machine
    experiment: Resolved
    """The experiment as configured."""
    limit: int
    """Bytes of a device that the step may take."""
    configured: search.Trial | None
    """The trial of the experiment as configured; None where it leaves something to choose."""
    trials: list[search.Trial]
    """The trials that fit, the fastest first."""
    eval_bytes: int | None
    """Bytes of a device while the best trial evaluates held-out loss; None where nothing fits, or
    nothing compiles for the machine."""
    sufficient_target: str | None
    """The next larger machine of the same kind that would do, where nothing fits."""
    seconds: float
    """Seconds that the plan took."""

    @property
    def best(self) -> search.Trial | None:
        """The fastest trial that fits."""
        return self.trials[0] if self.trials else None

    @property
    def max_size(self) -> int | None:
        """The largest microbatch of what runs as the best trial does, apart from its microbatch."""
        best = self.best
        alike = [t for t in self.trials if best is not None and _whole(t) == _whole(best)]
        return max((trial.size for trial in alike), default=None)

    @property
    def shown(self) -> search.Trial | None:
        """The trial to describe: the best one, or the experiment as configured if nothing fits."""
        return self.best or self.configured

    @property
    def frontier(self) -> list[search.Trial]:
        """The trials that are faster than all with less memory, the fastest first."""
        kept: list[search.Trial] = []
        for trial in self.trials:
            if not kept or trial.total < kept[-1].total:
                kept.append(trial)
        return kept

    @property
    def fits_as_configured(self) -> bool:
        """True where the experiment fits without any change."""
        return self.configured is not None and self.configured.fits(self.limit)

    @property
    def source(self) -> str:
        """The source of the memory's numbers: compiled or analytic."""
        return "compiled" if self.machine.compiles else "analytic"

    def overrides(self, trial: search.Trial) -> list[str]:
        """Returns the flags that turn the experiment into that trial's."""
        return search.list_overrides(self.experiment, trial.experiment)


def make_plan(
    experiment: Resolved,
    machine: Machine,
    compiler: Compiler | None,
    *,
    searched: Sequence[str],
    limit: int | None = None,
    max_seconds: float,
    on_configured: Callable[[search.Trial, bool], None] = lambda trial, is_fitting: None,
) -> Plan:
    """Plans a resolved experiment on a machine.

    Without a compiler, memory is estimated. The dimensions `searched` may change, see
    `search.DIMENSIONS`. `limit` is in bytes of a device; by default those usable, less the
    headroom. `on_configured` is called before the search with the trial of the experiment as
    configured, and whether it fits. InputError: mesh, batch and model do not fit together.
    """
    start = time.monotonic()
    limit = limit or machine.limit
    configured = _configured(experiment, machine, compiler, limit)
    if configured is not None:
        on_configured(configured, configured.fits(limit))
    is_searched = searched or configured is None
    found = search.list_arrangements(experiment, machine, searched) if is_searched else []
    trials = search.search(found, limit, compiler, deadline=start + max_seconds)
    if configured is not None and configured.fits(limit):
        trials = _insert_configured(trials, configured)
    is_small = searched and not trials
    return Plan(
        machine=machine,
        experiment=experiment,
        limit=limit,
        configured=configured,
        trials=trials,
        eval_bytes=compiler.eval_bytes(trials[0].experiment) if compiler and trials else None,
        sufficient_target=_sufficient(experiment, machine.target, limit) if is_small else None,
        seconds=time.monotonic() - start,
    )


def _configured(
    experiment: Resolved, machine: Machine, compiler: Compiler | None, limit: int
) -> search.Trial | None:
    if search.open_choices(experiment):
        return None
    program = make_program(experiment, machine.devices)
    size, compiled = program.microbatch_size, None
    arrangement = search.Arrangement(program, machine, (size,))
    if compiler is not None and arrangement.memory(size).total < search.HOPELESS * limit:
        (compiled,) = compiler.compile([experiment])
    trial = search.make_trial(arrangement, size, compiled, is_largest=False)
    return replace(trial, experiment=experiment)


def _insert_configured(trials: list[search.Trial], configured: search.Trial) -> list[search.Trial]:
    """Adds the experiment as configured, before all trials that are not clearly faster."""
    same = configured.size, _whole(configured)
    others = [trial for trial in trials if (trial.size, _whole(trial)) != same]
    is_largest = any(trial.is_largest for trial in trials if trial not in others)
    configured = replace(configured, is_largest=is_largest)
    faster = [t for t in others if t.time.expected < 0.995 * configured.time.expected]
    return [*faster, configured, *(trial for trial in others if trial not in faster)]


def _whole(trial: search.Trial) -> Resolved:
    """Returns the experiment of a trial without its microbatch."""
    train = replace(trial.experiment.train, microbatch_size=None)
    return replace(trial.experiment, train=train)


def _sufficient(experiment: Resolved, target: Target, limit: int) -> str | None:
    """Returns the next larger machine of that kind that would do, by estimates.

    The least memory is that of one example at a time, with everything recomputed and the weights
    spread over all devices.
    """
    if (chip := target.chip) is None:
        return None
    train = replace(experiment.train, microbatch_size=1)
    model = replace(experiment.model, remat="full")
    for _ in range(_MAX_DOUBLINGS):
        target = next_larger(target)
        devices = placeholder_devices(chip, target.num_devices, target.num_slices)
        for tensor in (1, search.MAX_TENSOR):
            mesh = Mesh(replica=target.num_slices, fsdp=-1, tensor=tensor)
            least = replace(experiment, train=train, model=model, mesh=mesh)
            try:
                program = make_program(least, devices)
            except InputError:  # The batch does not divide over so many.
                continue
            if estimate_memory(program).total <= limit:
                return target.name
    return None
