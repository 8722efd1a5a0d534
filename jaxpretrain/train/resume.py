"""Where a run begins or goes on: its first state, and the check that its config fits the position.

The position of a run in its data is a number of samples, which a config gives to each step. A run
goes on only where its config gives the position of the checkpoint, so that no sample is read twice
or left out. Stages can say what the batches were until then. What is taken from a checkpoint of
another run is never made first, so that a model is in memory once.
"""

import math
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.rewind import rewind
from jaxpretrain.checkpoints.streamed import CorruptCheckpoint
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.schema import Mark, marks_at, snake_case, value_text, walk
from jaxpretrain.config.serialize import ABSENT, Document, diff, from_dict, to_dict
from jaxpretrain.data.skip import before as until
from jaxpretrain.data.skip import describe as describe_ranges
from jaxpretrain.data.skip import num_positions, parse_ranges
from jaxpretrain.data.text.mixture import Mixture
from jaxpretrain.monitor.writers import LOGS
from jaxpretrain.optim import schedules
from jaxpretrain.parallel.distributed import is_primary
from jaxpretrain.storage.paths import parse
from jaxpretrain.train.experiment import Experiment, Resolved, Stage, Train, pace_of
from jaxpretrain.train.program import Program
from jaxpretrain.train.step import TrainState
from jaxpretrain.train.trained import checkpoint_behind, load_arrays, require_arrays
from jaxpretrain.train.workdir import note_saved, saved_document

_SAME_RATE = 0.01
"""Relative difference of learning rates that needs no line."""

_Portion = tuple[int, int, int | None]
"""Steps with the same batch: (number of steps, batch size, sequence length)."""


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that a run goes on from, and the config until then."""

    flag: str
    """The flag by which the user has named it, such as --workdir=RUN."""
    folder: Path
    step: int
    samples: int
    """Number of samples of the data that have been seen, which is the number of the next one."""
    config: Document
    data_fingerprint: str

    def before(self, now: Resolved) -> Resolved:
        """Returns `now` with the data, optimizer and batches that the run had up to then."""
        before = {name: self.config[name] for name in ("data", "optim", "train")}
        return from_dict(Resolved, to_dict(now) | before)


def newest_point(workdir: Path, step: int | None = None) -> ResumePoint | None:
    """Returns the newest checkpoint of a folder whose document can be read; None without one.

    With a `step`, only its checkpoint is looked at.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    for one in reversed(checkpoints.steps() if step is None else [step]):
        with suppress(CorruptCheckpoint):  # told when its arrays are restored
            return point_of(workdir, one, checkpoints.document(one))
    return None


def go_back(
    workdir: Path, step: int, checkpoints: Checkpoints, like: object
) -> tuple[tuple[int, TrainState, Document], list[str]]:
    """Restores an older checkpoint, and then moves what comes after it aside.

    All processes call it together. Returns (step, state, extra) as `Checkpoints.restore_newest`,
    and lines about what was moved. InputError: the checkpoint is damaged, and nothing was moved.
    """
    try:
        found = step, *checkpoints.restore(step, like)
    except CorruptCheckpoint as error:
        others = ", ".join(f"{one:,}" for one in checkpoints.steps() if one != step)
        hint = f"the others are of step {others}" if others else "there is no other"
        raise InputError(
            f"--rewind_to={step}: that checkpoint is damaged ({error}), and nothing was moved; "
            f"{hint}"
        ) from error
    if not is_primary():
        return found, []
    line = rewind(workdir, step, LOGS)
    note_saved(workdir, step)
    return found, [line] if line else []


def point_of(folder: Path, step: int, document: Document, flag: str | None = None) -> ResumePoint:
    """Returns the checkpoint of a step in a run's folder, with its document.

    `flag` is the one by which the user has named it; None: --workdir.
    """
    saved = saved_document(folder)
    samples = document.get("data_position", step)
    if samples == step:
        # Checkpoints once counted steps there. The two are the same where a batch is one sample.
        train = from_dict(Train, saved["config"]["train"])
        samples = int(pace_of(train).examples(step))
    flag = flag or f"--workdir={folder}"
    return ResumePoint(flag, folder, step, samples, saved["config"], saved["data_fingerprint"])


def taken_point(experiment: Resolved) -> ResumePoint | None:
    """Returns the checkpoint of `init_from` whose step a new run goes on from; None without one.

    Raises InputError where there is no such checkpoint, or it is damaged.
    """
    if experiment.init_from is None or experiment.init_with != "everything":
        return None
    flag = "--config.init_from"
    found = checkpoint_behind(parse(experiment.init_from, flag), flag)
    if found is None or "data_position" not in found[2]:
        return None  # converted weights, which know no position and no moments
    return point_of(*found, flag=f"{flag}={experiment.init_from}")


def require_same_samples(point: ResumePoint, experiment: Resolved, data_fingerprint: str) -> None:
    """Checks that the config goes on with the sample that comes next.

    Raises InputError where samples would be read twice or left out. The line has the flags that
    make the config go on where the checkpoint ends, if there are any.
    """
    if not point.samples:
        return
    before = point.before(experiment)
    skips = [parse_ranges(x.data.skip, "data.skip") for x in (before, experiment)]
    was, now = (describe_ranges(until(ranges, point.samples)) or "none" for ranges in skips)
    if was != now:
        raise InputError(
            f"{point.flag}: data.skip={now} until step {point.step:,}, was {was}: the run has come "
            "past those samples. Give what was there and later ranges alone, or go back before "
            "them with --rewind_to=STEP"
        )
    if changes := _reordered(point, experiment, data_fingerprint):
        raise InputError(
            f"{point.flag}: {'; '.join(changes)}: samples get other numbers, so that some of the "
            f"{point.samples:,} seen until step {point.step:,} would come again and others never; "
            f"{_new_run(point)}"
        )
    meant = experiment
    if isinstance(experiment.data, Mixture) and isinstance(before.data, Mixture):
        seen = num_positions(point.samples, skips[1])
        meant = replace(meant, data=_same_mixture(point, seen, before.data, experiment.data))
    expected = int(experiment.timeline.pace.examples(point.step))
    if expected != point.samples:
        stages = _stages(point, before, experiment)
        meant = replace(meant, train=replace(meant.train, stages=stages))
    if meant == experiment:
        return
    problem = f"the mixture of the first {point.samples:,} samples was another"
    if expected != point.samples:
        problem = (
            f"step {point.step:,} has seen {point.samples:,} samples, and with this config it "
            f"would have seen {expected:,}"
        )
    longer = ""
    if point.step >= experiment.timeline.num_steps:
        longer = f", and train.duration beyond step {point.step:,}"
    raise InputError(
        f"{point.flag}: {problem}; to go on at sample {point.samples:,} with the new values, add "
        f"{' '.join(_flags(before, experiment, meant))}{longer}"
    )


def describe_changes(point: ResumePoint, experiment: Resolved, data_fingerprint: str) -> list[str]:
    """Returns lines about allowed changes at the checkpoint: of the data, of the learning rate."""
    lines = []
    if point.samples and point.data_fingerprint != data_fingerprint:
        lines.append(
            f"the data is not as it was before: step {point.step + 1:,} begins with sample "
            f"{point.samples:,} of what it is now"
        )
    return lines + _rate_change(point, experiment)


def _reordered(point: ResumePoint, experiment: Resolved, data_fingerprint: str) -> list[str]:
    """Returns the changes that give the samples of the data other numbers."""
    same_files = point.data_fingerprint == data_fingerprint  # and order, but for the seed
    ordering = {Mark.IDENTITY, Mark.SAMPLE_ORDER}
    return [
        f"{path.removesuffix('.class')} is {here}, was {there}"
        for path, there, here in diff(point.config, to_dict(experiment))
        if path == "seed" or (not same_files and ordering <= marks_at(Experiment, path))
        if ABSENT not in (there, here)
    ]


def _same_mixture(point: ResumePoint, seen: int, before: Mixture, now: Mixture) -> Mixture:
    """Returns a mixture that is `before` until the checkpoint and `now` after it.

    `seen` is the number of its samples until then, those that are left out included.
    """
    if before.proportions(seen) == now.proportions(seen):
        return now
    names = {name for _, shares in before.proportions(seen) for name in shares}
    missing = sorted(names - now.sources.keys())
    if missing:
        raise InputError(
            f"{point.flag}: data.sources has no {' and no '.join(missing)}, of which the first "
            f"{seen:,} samples are; keep it, with weight 0 in a stage that begins at "
            f'"{seen} examples", or {_new_run(point)}'
        )
    return now.after(before, seen)


def _stages(point: ResumePoint, before: Resolved, now: Resolved) -> tuple[Stage, ...]:
    """Returns stages with the batches of `before` until the checkpoint and those of `now` after."""
    past = list(_portions(before, 0, point.step))
    if sum(steps * batch_size for steps, batch_size, _ in past) != point.samples:
        batch_size, rest = divmod(point.samples, point.step)
        if rest:
            raise InputError(
                f"{point.flag}: step {point.step:,} has seen {point.samples:,} samples, in batches "
                f"that nothing tells any more; {_new_run(point)}"
            )
        past = [(point.step, batch_size, None)]
    end = max((*now.timeline.stage_ends, point.step))
    runs = groupby([*past, *_portions(now, point.step, end)], key=lambda portion: portion[1:])
    merged = [Stage(sum(steps for steps, *_ in same), *batch) for batch, same in runs]
    rest = now.train.batch_size, None
    return tuple(merged[:-1] if (merged[-1].batch_size, merged[-1].seq_len) == rest else merged)


def _portions(run: Resolved, first: int, last: int) -> Iterable[_Portion]:
    """Yields the portions of the steps `first` + 1, ..., `last`."""
    pace, at = run.timeline.pace, 0
    stages = zip(pace.stages, run.train.stages, strict=True)
    portions = [(steps, batch_size, stage.seq_len) for (steps, batch_size), stage in stages]
    for length, batch_size, seq_len in [*portions, (max(last, 1), pace.batch_size, None)]:
        steps = min(at + length, last) - max(at, first)
        if steps > 0:
            yield steps, batch_size, seq_len
        at += length


def _flags(before: Resolved, now: Resolved, meant: Resolved) -> Iterable[str]:
    """Yields the flags that turn `now` into `meant`, and the flag of a new batch size."""
    if before.train.batch_size != now.train.batch_size:
        yield _flag("train.batch_size", now.train.batch_size)
    if now.train.stages != meant.train.stages:
        yield from _list_flags("train.stages", now.train.stages, meant.train.stages)
    if isinstance(now.data, Mixture) and isinstance(meant.data, Mixture) and now.data != meant.data:
        if now.data.window != meant.data.window:
            yield _flag("data.window", meant.data.window)
        for name, source in meant.data.sources.items():
            if source != now.data.sources[name]:
                yield _flag(f"data.sources.{name}.weight", source.weight)
        yield from _list_flags("data.stages", now.data.stages, meant.data.stages)


def _list_flags(path: str, now: tuple[object, ...], meant: tuple[object, ...]) -> Iterable[str]:
    if now:
        yield f"--config.{path}="  # begins anew
    for index, item in enumerate(meant):
        for keys, value, _ in walk(item, type(item)):
            if isinstance(value, int | float | str):
                unit = {"duration": " steps", "at": " examples"}.get(keys[-1], "")
                yield _flag(".".join((path, str(index), *keys)), f"{value}{unit}")


def _flag(path: str, value: object) -> str:
    return f"--config.{path}={shlex.quote(value_text(value))}"


def _new_run(point: ResumePoint) -> str:
    if point.flag.startswith("--workdir"):
        return (
            "begin a new run in another --workdir, with "
            f"--config.init_from={shlex.quote(str(point.folder))} --config.init_with=optimizer"
        )
    return "begin at sample 0, with --config.init_with=optimizer"


def _rate_change(point: ResumePoint, experiment: Resolved) -> list[str]:
    """Returns a line where the learning rate neither goes on as planned nor stays as it was."""
    before, step = point.before(experiment), point.step
    total_before, total = before.timeline.num_steps, experiment.timeline.num_steps
    if step >= total:
        return []
    planned = before.optim.learning_rate(total_before, before.train.batch_size)
    last, expected = np.broadcast_to(planned(np.array([step, step + 1])), 2).tolist()
    rate = experiment.optim.learning_rate(total, experiment.train.batch_size)
    new = float(np.asarray(rate(step + 1)))
    if any(math.isclose(new, rate, rel_tol=_SAME_RATE) for rate in (expected, last)):
        return []
    line = f"the learning rate goes from {last:.3g} at step {step:,} to {new:.3g} at the next"
    if to_dict(before.optim) == to_dict(experiment.optim) and total != total_before:
        line += f", because the run now ends at step {total:,} instead of {total_before:,}"
        line += _kept(experiment.optim.schedule, step, total_before, total)
    return [line]


def _kept(schedule: schedules.Schedule, step: int, total_before: int, total: int) -> str:
    """Returns advice that keeps the planned descent, or descends from the current rate."""
    path = "optim.schedule"
    while isinstance(schedule, schedules.BoltOnWarmup):
        path, schedule = f"{path}.inner", schedule.inner
    if (
        isinstance(schedule, schedules.Triangular | schedules.WarmupCosine)
        and schedule.horizon is None
    ):
        horizon = _flag(f"{path}.horizon", f"{total_before} steps")
        tail = _tail_flags(path, replace(schedule, horizon=total_before), total - step)
        return (
            f". To keep the old descent, add --allow_config_change {horizon}. To anneal from "
            f"there to 0 at step {total:,}, add --allow_config_change {' '.join(tail)}"
        )
    if isinstance(schedule, schedules.WarmupStableDecay | schedules.LinearTail):
        name, first = schedule.phases(total_before)[-1]
        return (
            f". Its {name} began at step {first:,}: to go on as if it had not, move the later "
            "checkpoints out of checkpoints/ and start again"
        )
    return ""


def _tail_flags(
    path: str, inner: schedules.Triangular | schedules.WarmupCosine, length: int
) -> Iterable[str]:
    """Yields the flags that put a linear descent to 0 after a schedule."""
    yield _flag(path, snake_case(schedules.LinearTail))
    yield _flag(f"{path}.inner", snake_case(type(inner)))
    for name, _, value in diff(to_dict(type(inner)()), to_dict(inner)):
        yield _flag(f"{path}.inner.{name}", value)
    yield _flag(f"{path}.length", f"{length} steps")


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
    step, taken = load_arrays(parse(experiment.init_from, _FLAG), _wanted(program), flag=_FLAG)
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
        model = program.experiment.model
        require_arrays(parse(path, _FLAG), _wanted(program), model, flag=_FLAG)


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
