"""What the runs of a sweep take, and what is equal over its arms, before anything runs.

Arithmetic, parameters and time come from the model's closed forms and cost no compilation. Memory
is that of the compiled step where a compiler is given, and an estimate elsewhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.schema import Mark, marks_at
from jaxpretrain.config.serialize import Document, diff, to_dict
from jaxpretrain.planning.auto import stand_in
from jaxpretrain.planning.compiled import compile_step
from jaxpretrain.planning.estimates import StepTime, estimate_memory, estimate_run, estimate_time
from jaxpretrain.planning.machines import Target, open_machine
from jaxpretrain.planning.search import open_choices
from jaxpretrain.sweeps.arms import Sweep, SweepRun
from jaxpretrain.train.experiment import Experiment, Resolved, resolve
from jaxpretrain.train.program import make_program

_machine = cache(open_machine)  # that at hand is measured, which takes a second

EqualBy = Literal["tokens", "flops", "time"]

_QUANTITY: dict[EqualBy, str] = {"tokens": "units", "flops": "flops", "time": "hours"}
NAMED = 0.02
"""The relative difference of FLOPs, parameters or batch that is named beside the result."""
_UNTRAINED = ("checkpoint", "monitor")
"""Parts of the config that change no result."""
_SHOWN = {"flops": "FLOPs", "parameters": "parameters", "batch_size": "examples a batch"}


@dataclass(frozen=True)
class Cost:
    """The cost of one run."""

    experiment: Resolved
    parameters: int
    unit: str
    """Unit of what the model reads: tokens or images."""
    units: int
    """Number of tokens or images of the whole run."""
    units_of_last: int
    """Number of tokens or images of the last step."""
    flops: float
    """Arithmetic of the whole run, without recomputation."""
    memory_bytes: int | None
    """Bytes of a device at the peak of the step; None where no machine is known, or the run itself
    chooses what fits (`auto`)."""
    hours: float | None
    """Hours of all training steps; None where no machine is known."""
    device_hours: float | None
    """Hours of all training steps times the devices of a run; None where no machine is known."""
    program: str
    """The parts of the config that the training step is compiled from; equal ones compile once."""

    @property
    def batch_size(self) -> int:
        """Number of examples of a step."""
        return self.experiment.train.batch_size

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return self.experiment.timeline.num_steps

    def reads_as_much_as(self, other: "Cost") -> bool:
        """Returns true where one duration, rounded up to whole steps, could have given both."""
        without_last = max(cost.units - cost.units_of_last for cost in (self, other))
        return self.unit == other.unit and without_last < min(self.units, other.units)


def setting_of(run: SweepRun) -> str:
    """Returns the folder that the seeds of a run share: its arm, with its tuned values if any."""
    return PurePosixPath(run.folder).parent.as_posix()


def costs(sweep: Sweep, target: Target | None, *, compiles: bool = False) -> dict[str, Cost]:
    """Returns the cost of a run of each setting (see `setting_of`), in the order of the runs.

    Without a target, memory and time stay unknown. The step is compiled for its memory where that
    is asked for and the target has a compiler here, once for runs that differ in numbers alone.

    Raises:
      InputError: mesh, batch and model of a run do not fit together, or two settings are the same
        run, such as durations of 100 and "100 steps".
    """
    found: dict[str, Cost] = {}
    known: dict[str, _Step] = {}
    settings: dict[str, str] = {}
    for run in sweep.runs():
        if (setting := setting_of(run)) in found:
            continue
        try:
            experiment = resolve(sweep.configured(run.overrides))
            shape = _shape(experiment)
            if shape not in known:
                known[shape] = _step(experiment, target, compiles)
        except InputError as error:
            raise InputError(f"{setting}: {error}") from error
        found[setting] = _cost(experiment, known[shape])
        trained = {key: x for key, x in to_dict(experiment).items() if key not in _UNTRAINED}
        twin = settings.setdefault(json.dumps(trained, sort_keys=True), setting)
        if twin != setting:
            raise InputError(f"{twin} and {setting} give the same results: leave one out")
    return found


@dataclass(frozen=True)
class Comparison:
    """The quantities that are equal over the arms, and the differences."""

    equal: list[str]
    """Names of the quantities that all arms have alike."""
    refused: list[str]
    """Lines about differences that make a comparison unfair."""
    named: list[str]
    """Lines about differences to keep in mind beside the result."""
    are_losses_comparable: bool = True
    """False where arms change what a loss measures: a lower one then need not be better."""


def compare(found: Mapping[str, Cost], control: str, by: EqualBy | None = None) -> Comparison:
    """Compares the cost of each setting with that of the control's first.

    Arms must read equally many tokens or images, up to the rounding to whole steps, unless `by`
    makes something else equal. Evaluation sets must be equal in any case.
    """
    base = found[control]
    same = dict.fromkeys((base.unit, "evaluation_sets", *_SHOWN), True)
    refused: list[str] = []
    named: list[str] = []
    are_losses_comparable = True
    for setting, cost in found.items():
        if not cost.reads_as_much_as(base):
            same[base.unit] = False
            line = f"{setting}: {cost.units:,} {cost.unit}, {control} has {base.units:,}"
            (named if by in ("flops", "time") else refused).append(line)
        for path, left, right in diff(_held_out(base), _held_out(cost)):
            same["evaluation_sets"] = False
            refused.append(f"{setting}: evaluates with {path}={right}, {control} with {left}")
        measures = [
            f"{setting}: {path}={here} changes what a loss measures, {control} has {there}"
            for path, there, here in diff(to_dict(base.experiment), to_dict(cost.experiment))
            if Mark.LOSS in marks_at(Experiment, path)
        ]
        named += measures
        are_losses_comparable &= not measures
        for quantity, words in _SHOWN.items():
            change = getattr(cost, quantity) / (getattr(base, quantity) or 1) - 1.0
            if abs(change) > NAMED:
                same[quantity] = False
                more = "more" if change > 0 else "fewer"
                named.append(f"{setting}: {abs(change):.1%} {more} {words} than {control}")
    equal = [name for name, is_same in same.items() if is_same]
    return Comparison(equal, refused, named, are_losses_comparable)


def equalised(
    sweep: Sweep, by: EqualBy, found: Mapping[str, Cost], earlier: Mapping[str, str]
) -> Sweep:
    """Returns the sweep with durations that give each arm the control's tokens, FLOPs or time.

    `earlier` are the durations that the sweep had when it began, by arm: estimates of time differ
    a little from start to start, and a run that goes on keeps its length.

    Raises:
      InputError: the time of a step is not known.
    """
    base = found[first_setting(sweep, sweep.control)]
    if by == "time" and base.hours is None:
        raise InputError("--equal=time: the time of a step is not known here; give --target")
    quantity = _QUANTITY[by]
    arms = []
    for arm in sweep.arms:
        cost = found[first_setting(sweep, arm.name)]
        units = round(cost.units * getattr(base, quantity) / getattr(cost, quantity))
        duration = earlier.get(arm.name, f"{units} {base.unit}")
        is_control = arm.name == sweep.control
        own = () if is_control else (("train.duration", duration),)
        arms.append(replace(arm, overrides=(*arm.overrides, *own)))
    return replace(sweep, arms=tuple(arms))


def require_equal(sweep: Sweep, by: EqualBy, found: Mapping[str, Cost]) -> None:
    """Raises InputError where a tuned value changes what `equalised` has made equal."""
    base = found[first_setting(sweep, sweep.control)]
    for setting, cost in found.items():
        share = getattr(cost, _QUANTITY[by]) / getattr(base, _QUANTITY[by])
        if abs(share - 1.0) > max(NAMED, 2 * cost.units_of_last / cost.units):
            raise InputError(
                f"--equal={by}: {setting} takes {share:.3g} times the {by} of {sweep.control}, "
                f"because a value of --tune changes it; give train.duration in {cost.unit}"
            )


def first_setting(sweep: Sweep, arm: str) -> str:
    """Returns the first setting of an arm; others have other tuned values."""
    return next(setting_of(run) for run in sweep.runs() if run.arm == arm)


@dataclass(frozen=True)
class _Step:
    """What is equal for all runs whose steps have the same shapes."""

    parameters: int
    unit: str
    units_per_example: int
    flops_per_example: float
    memory_bytes: int | None
    time: StepTime | None


def _step(experiment: Resolved, target: Target | None, compiles: bool) -> _Step:
    is_open, experiment = bool(open_choices(experiment)), stand_in(experiment)
    machine = None if target is None else _machine(target, experiment.model.dtype)
    devices = jax.devices()[:1] if machine is None else machine.devices
    program = make_program(experiment, devices)
    unit, units_per_example = program.model.units_per_example()
    memory = time = None
    if machine is not None:
        time = estimate_time(program, machine.chip, num_hosts=machine.num_hosts)
        if not is_open:
            is_exact = compiles and machine.compiles
            compiled = compile_step(experiment, machine) if is_exact else estimate_memory(program)
            memory = compiled.total
    return _Step(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        unit=unit,
        units_per_example=units_per_example,
        flops_per_example=program.model.flops_per_example(causal=True),
        memory_bytes=memory,
        time=time,
    )


def _cost(experiment: Resolved, step: _Step) -> Cost:
    timeline = experiment.timeline
    examples = float(timeline.pace.examples(timeline.num_steps))
    run = None if step.time is None else estimate_run(experiment, step.time)
    return Cost(
        experiment=experiment,
        parameters=step.parameters,
        unit=step.unit,
        units=round(examples * step.units_per_example),
        units_of_last=len(timeline.pace.samples(timeline.num_steps)) * step.units_per_example,
        flops=examples * step.flops_per_example,
        memory_bytes=step.memory_bytes,
        hours=None if run is None else run.days * 24,
        device_hours=None if run is None else run.device_hours,
        program=_program(to_dict(experiment), experiment),
    )


def _program(document: Document, experiment: Resolved) -> str:
    data = experiment.data
    parts: dict[str, Any] = {name: document[name] for name in ("model", "optim", "train", "mesh")}
    parts["data"] = [data.example_spec(), data.extra_spec(), data.source_names()]
    return json.dumps(parts, sort_keys=True)


def _shape(experiment: Resolved) -> str:
    """Returns the parts of the config that memory and speed follow from."""
    document = to_dict(experiment)
    document["optim"] = {k: v for k, v in document["optim"].items() if k != "schedule"}
    document["train"] = {k: v for k, v in document["train"].items() if k != "duration"}
    return _program(document, experiment)


def _held_out(cost: Cost) -> Document:
    """Returns the fields of the config that decide what is evaluated, and how."""
    document = to_dict(cost.experiment)
    fields = diff({}, {name: document[name] for name in ("data", "eval")})
    return {
        path: value
        for path, _, value in fields
        if Mark.SAME_SCORES not in marks_at(Experiment, path)
    }
