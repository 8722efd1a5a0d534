"""The answer to "will it fit, how fast, and how long": one value, as a document or a table.

The experiment as it stands is compiled first; then the search looks for what would be faster.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.planning.analytic_memory import estimate_memory
from jaxpretrain.planning.arrangements import MAX_TENSOR, Arrangement, arrangements, overrides
from jaxpretrain.planning.machines import Machine, stands
from jaxpretrain.planning.pool import Compiler
from jaxpretrain.planning.search import Tell, Trial, search
from jaxpretrain.planning.targets import Target, grown
from jaxpretrain.planning.time_model import RunTime, run_time
from jaxpretrain.train.experiment import Experiment
from jaxpretrain.train.memory import Memory
from jaxpretrain.train.program import make_program

_HOPELESS = 1.5
"""What is estimated to take so many times the limit is not compiled."""
_MAX_GROWTH = 12


@dataclass(frozen=True)
class Plan:
    """What an experiment takes on a machine, and what would be best."""

    target: str
    machine: Machine
    experiment: Experiment
    """As configured."""
    limit: int
    """Bytes of a device that the step may take."""
    configured: Trial | None
    """Of the experiment as it stands; None where it leaves something to choose."""
    trials: list[Trial]
    """What fits, the fastest first."""
    eval_bytes: int | None
    """Of a device while the best one evaluates held-out loss; None: nothing fits or compiles."""
    enough: str | None
    """Where nothing fits, the machine of the same kind on which something would."""
    seconds: float
    """That planning took."""

    @property
    def best(self) -> Trial | None:
        """The fastest that fits."""
        return self.trials[0] if self.trials else None

    @property
    def frontier(self) -> list[Trial]:
        """What is faster than all that takes less memory, the fastest first."""
        kept: list[Trial] = []
        for trial in self.trials:
            if not kept or trial.total < kept[-1].total:
                kept.append(trial)
        return kept

    @property
    def fits_as_configured(self) -> bool:
        """Whether nothing has to be changed."""
        return self.configured is not None and self.configured.fits(self.limit)

    @property
    def source(self) -> str:
        """Where the memory comes from: compiled or analytic."""
        return "compiled" if self.machine.compiles else "analytic"

    def memory(self, trial: Trial) -> Memory:
        """The parts of a trial's total, estimated where its compiler did not tell."""
        if trial.compiled is not None and trial.compiled.memory is not None:
            return trial.compiled.memory
        return estimate_memory(make_program(trial.experiment, self.machine.devices))

    def overrides(self, trial: Trial) -> list[str]:
        """The flags that make the experiment that trial's."""
        return overrides(self.experiment, trial.experiment)

    def run_time(self, trial: Trial, price: float | None = None) -> RunTime:
        """Of the whole run; `price` of a device-hour."""
        return run_time(trial.experiment, trial.time, len(self.machine.devices), price)


def make_plan(
    experiment: Experiment,
    target: Target,
    machine: Machine,
    compiler: Compiler | None,
    *,
    searched: Sequence[str],
    limit: int | None = None,
    max_seconds: float,
    tell: Tell,
    told: Callable[[Trial, bool], None] = lambda trial, fits: None,
) -> Plan:
    """Plans a resolved experiment.

    Args:
      experiment: what is to be trained.
      target: the machine's name.
      machine: its devices.
      compiler: None where there is none: memory is estimated then.
      searched: dimensions that may change, see `arrangements.DIMENSIONS`; (): none.
      limit: bytes of a device; by default what is usable, less the headroom.
      max_seconds: after them, nothing more is compiled.
      tell: called after each compilation.
      told: called with the experiment as it stands, before the search.

    Raises:
      InputError: mesh, batch and model do not fit together.
    """
    start = time.monotonic()
    limit = limit or machine.limit
    configured = _configured(experiment, machine, compiler, limit, tell)
    if configured is not None:
        told(configured, configured.fits(limit))
    found = arrangements(experiment, machine, searched) if searched or configured is None else []
    trials = search(found, limit, compiler, deadline=start + max_seconds, tell=tell)
    if configured is not None and configured.fits(limit):
        trials = _with(trials, configured)
    enough = None if trials or not searched else _enough(experiment, target, limit)
    best = trials[0].experiment if trials else None
    return Plan(
        target=target.name,
        machine=machine,
        experiment=experiment,
        limit=limit,
        configured=configured,
        trials=trials,
        eval_bytes=None if compiler is None or best is None else compiler.eval_bytes(best),
        enough=enough,
        seconds=time.monotonic() - start,
    )


def _configured(
    experiment: Experiment, machine: Machine, compiler: Compiler | None, limit: int, tell: Tell
) -> Trial | None:
    if "auto" in (experiment.train.microbatch_size, experiment.model.remat):
        return None
    program = make_program(experiment, machine.devices)
    size = program.microbatch_size
    arrangement = Arrangement(program, machine, (size,))
    total, compiled = arrangement.memory(size).total, None
    # Nothing is learnt from compiling what is far too large, and it takes long.
    if compiler is not None and total < _HOPELESS * limit:
        compiled = compiler.compile([experiment], tell)[0]
        total = compiled.total
    return Trial(experiment, size, total, arrangement.time(size), compiled, is_largest=False)


def _with(trials: list[Trial], configured: Trial) -> list[Trial]:
    """The experiment as it stands comes first unless another is faster."""

    def identity(trial: Trial) -> tuple[int, Experiment]:
        train = replace(trial.experiment.train, microbatch_size=None)
        return trial.size, replace(trial.experiment, train=train)

    others = [trial for trial in trials if identity(trial) != identity(configured)]
    same = [trial for trial in trials if trial not in others]
    configured = replace(configured, is_largest=any(trial.is_largest for trial in same))
    faster = [t for t in others if t.time.expected < 0.995 * configured.time.expected]
    return [*faster, configured, *(trial for trial in others if trial not in faster)]


def _enough(experiment: Experiment, target: Target, limit: int) -> str | None:
    """By estimates: the next machine of that kind on which the least that can be asked fits.

    That is one example at a time, all recomputed, and weights spread over all devices.
    """
    if target.chip is None:
        return None
    train = replace(experiment.train, microbatch_size=1)
    model = replace(experiment.model, remat="full")
    for _ in range(_MAX_GROWTH):
        target = grown(target)
        devices = stands(target)
        for tensor in (1, MAX_TENSOR):
            mesh = Mesh(fsdp=-1, tensor=tensor)
            try:
                least = make_program(
                    replace(experiment, train=train, model=model, mesh=mesh), devices
                )
            except InputError:  # The batch does not divide over so many.
                continue
            if estimate_memory(least).total <= limit:
                return target.name
    return None
