"""Two runs that part: the first step, microbatch, layer and tensor where they differ, and why.

What both have recorded shows when they part, the checksums in their checkpoints which arrays do.
From the newest state that both share, the programs of both are run here, step by step: what differs
then comes from the configs or the data; what does not, from where the runs ran.
"""

import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from jaxpretrain.checkpoints.names import checksums, to_named
from jaxpretrain.checkpoints.streamed import Streamed
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document, diff
from jaxpretrain.data.contract import Batch
from jaxpretrain.models.contract import Params
from jaxpretrain.models.stack import is_stacked
from jaxpretrain.replay.proof import bound, differences, judge, relative, sum_up
from jaxpretrain.replay.stretch import (
    Line,
    Step,
    Stretch,
    Upcoming,
    initial_state,
    kept_checkpoints,
    open_stretch,
    read_recorded,
)
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train import workdir as folder
from jaxpretrain.train.experiment import identity_changes
from jaxpretrain.train.step import make_sum_gradient, numbered, step_key

STEPS = ("step", "_step")
LOSSES = ("loss", "train/loss", "train/CrossEntropyLoss", "train/CE loss")
"""The names of a loss in the files of other programs: any, this one, OLMo, OLMo-core."""
MOST = 6
"""The largest number of fields or arrays that are named."""
_Named = dict[str, np.ndarray]


@dataclass(frozen=True)
class Parted:
    """Where two runs part by what they have recorded."""

    step: int
    """The first step that differs."""
    equal_until: int
    """The last recorded step before it; 0 without one."""
    place: str
    size: float
    """The relative difference of that number."""


@dataclass(frozen=True)
class Detail:
    """A step of one of the runs, before it is made."""

    rows: Batch
    gradients: list[_Named]
    """The gradient of each microbatch by array."""
    signals: _Named
    """The signals of the layers in the forward pass."""


def compare_with(workdir: Path, other: Path) -> tuple[int | None, list[str]]:
    """Compares a run with another one, or with a file of losses: the step where they part, lines.

    The step is None where they do not part. InputError: there is nothing to compare with.
    """
    dtype = folder.read_experiment(workdir).model.dtype
    here = read_recorded(workdir)
    is_run = (other / "experiment.json").exists()
    there = read_recorded(other) if is_run else dict(_losses_in(other))
    common = sorted(here.keys() & there.keys())
    if not common:
        raise InputError(f"--against={other}: has no losses of steps that {workdir} has recorded")
    # Another program never has the same bits.
    parted = first_difference(here, there, common, 0.0 if is_run else bound(dtype, 1))
    lines = _config_lines(workdir, other) if is_run else []
    if parted is None:
        same = "the same" if is_run else "equal to rounding"
        return None, [*lines, f"{same} in all {len(common)} steps that both have recorded"]
    lines.append(_when(parted, here, there, common, dtype))
    if not is_run:
        return parted.step, [*lines, _hint(parted)]
    start, found = _last_shared(workdir, other, parted)
    return parted.step, [*lines, *found, *_run_both(workdir, other, start, parted)]


def first_difference(
    here: Mapping[int, Line], there: Mapping[int, Line], steps: Sequence[int], allowed: float = 0.0
) -> Parted | None:
    """Returns the first of the steps whose loss or gradient norm differs; None without one.

    `allowed` is the relative difference for each step since the first that does not count.
    """
    before = 0
    for step in steps:
        names = [f"train/{name}" for name in ("loss", "grad_norm")]
        known = [name for name in names if name in here[step] and name in there[step]]
        for name in known:
            if (size := relative(here[step][name], there[step][name])) > allowed * step:
                return Parted(step, before, name, size)
        before = step
    return None


def _when(
    parted: Parted,
    here: Mapping[int, Line],
    there: Mapping[int, Line],
    steps: Sequence[int],
    dtype: str,
) -> str:
    """Returns in words when runs part, how the difference grows, and what rounding explains."""
    last = steps[-1]
    end = relative(here[last]["train/loss"], there[last]["train/loss"])
    until = f"after the same until step {parted.equal_until:,}" if parted.equal_until else "at once"
    allowed = bound(dtype, parted.step - parted.equal_until)
    why = (
        "rounding could explain that"
        if parted.size <= allowed
        else "rounding does not explain that"
    )
    return (
        f"they part at step {parted.step:,}, {until}: {parted.place} differs by {parted.size:.2g} "
        f"of its value, at step {last:,} the loss by {end:.2g}; {why} (at most {allowed:.2g})"
    )


def _hint(parted: Parted) -> str:
    """Returns where to look in another program, by the step in which the losses part."""
    if parted.step == 1:
        return "step 1 is made before any update: compare the first batch, the initial weights, " \
            "which tokens count in the loss, and the model"  # fmt: skip
    if parted.equal_until in (0, 1) and parted.step == 2:
        return "the first loss is the same, the second is not: compare learning rate (does the " \
            "first update have the rate of step 0 or 1?), clipping, decay and moments"  # fmt: skip
    return f"compare what changes after step {parted.equal_until:,}: data, schedule, skipped steps"


def _config_lines(workdir: Path, other: Path) -> list[str]:
    """Returns lines about fields that make two runs different ones, and about where they ran."""
    here, there = (folder.saved_document(path) for path in (workdir, other))
    changes, _ = identity_changes(diff(here["config"], there["config"]))
    lines = [f"{path}: {a} in {workdir}, {b} in {other}" for path, a, b in changes[:MOST]]
    lines += [f"and {len(changes) - MOST} more fields differ"] * (len(changes) > MOST)
    ran = [{k: d.get(k) for k in ("versions", "git_revision", "devices")} for d in (here, there)]
    lines += [f"{path}: {a} in {workdir}, {b} in {other}" for path, a, b in diff(*ran)[:MOST]]
    if here.get("data_fingerprint") != there.get("data_fingerprint"):
        lines.append("their data have different fingerprints")
    return lines


def _last_shared(workdir: Path, other: Path, parted: Parted) -> tuple[int, list[str]]:
    """Returns the newest step before two runs part whose states are equal, and lines about arrays.

    0 stands for the initial state.
    """
    both = [kept_checkpoints(path) for path in (workdir, other)]
    shared, lines = 0, []
    for step in sorted(set(both[0].steps()) & set(both[1].steps())):
        arrays = [one.document(step)["arrays"] for one in both]
        wrong = [n for n, x in arrays[0].items() if n in arrays[1] and x != arrays[1][n]]
        wrong = [name for name in wrong if name.startswith("params/")] or wrong
        if not wrong:
            shared = step if step < parted.step else shared
            continue
        sizes = {name: _distance(*(one.stream(step)[name] for one in both)) for name in wrong}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:MOST]
        named = ", ".join(f"{name} {sizes[name]:.2g}" for name in largest)
        lines.append(
            f"checkpoint {step:,} is the first that differs: {len(wrong)} of {len(arrays[0])} "
            f"arrays, most of all (relative to their norm) {named}"
        )
        break
    return shared, lines


def _run_both(workdir: Path, other: Path, start: int, parted: Parted) -> list[str]:
    """Returns lines about the steps of two runs, computed here from a state that both share."""
    runs = [open_stretch(path, f"{start + 1}-{parted.step}", start) for path in (workdir, other)]
    if not start:
        sums = [
            jax.device_get(checksums(to_named(initial_state(one.stages.program)))) for one in runs
        ]
        wrong = [name for name in sums[0] if sums[0][name] != sums[1].get(name)]
        if wrong := [name for name in wrong if name.startswith("params/")]:
            return [f"their initial weights differ: {', '.join(wrong[:MOST])}"]
    whence = f"checkpoint {start:,}" if start else "the initial state"
    steps: list[tuple[Step[None], ...]] = []
    for pair in zip(*(one.run(one.restore()) for one in runs), strict=True):
        steps.append(pair)
        if any(differences(pair[0].metrics, pair[1].metrics).values()):
            return [*_explained(runs, pair[0].number, whence)]
    lines = [f"computed here from {whence}, both give the same steps to {parted.step:,}"]
    for path, one, made in zip((workdir, other), runs, zip(*steps, strict=True), strict=True):
        lines.append(f"{path}, as recorded and as computed here: {sum_up(judge(one, made))}")
    return [*lines, "so they part by where they ran: devices, versions, or an error of one of them"]


def _explained(runs: Sequence[Stretch], step: int, whence: str) -> Iterator[str]:
    """Yields lines about the first step that two runs make differently here."""
    yield f"computed here from {whence}, step {step:,} is the first that differs"
    details = []
    for one in runs:
        alone = replace(one, first=step, last=step)
        *_, made = alone.run(alone.restore(), _look)
        details.append(made.seen)
    here, there = details
    assert here is not None and there is not None
    for name in here.rows.keys() & there.rows.keys():
        if here.rows[name].shape != there.rows[name].shape:
            yield f"their batches have other shapes: {name}"
            return
        differs = here.rows[name] != there.rows[name]
        rows = np.flatnonzero(differs.reshape(len(differs), -1).any(axis=1))
        if len(rows):
            first = runs[0].stages.samples(step).start
            yield (
                f"other data: {len(rows)} of {len(differs)} rows differ in {name}, first "
                f"row {rows[0]} (sample {first + int(rows[0]):,})"
            )
            return
    sizes = {place: size for place, size in _layers(here.signals, there.signals) if size}
    if sizes:
        first = min(sizes, key=_depth)
        yield f"forward: the first layer that differs is {first}, by {sizes[first]:.2g}"
    allowed = bound(runs[0].experiment.model.dtype, 1)
    for number, pair in enumerate(zip(here.gradients, there.gradients, strict=False)):
        sizes = dict(_layers(*pair))
        if not (wrong := sorted((n for n in sizes if sizes[n]), key=lambda n: -sizes[n])):
            continue
        named = ", ".join(f"{name} {sizes[name]:.2g}" for name in wrong[:MOST])
        why = "as rounding does" if sizes[wrong[0]] <= allowed else "more than rounding"
        yield (
            f"microbatch {number + 1} of {len(here.gradients)} is the first whose gradient "
            f"differs, {why} (at most {allowed:.2g}); most of all {named}"
        )
        return
    yield (
        "batches and gradients are the same: the update differs, so compare the optimizer, the "
        "schedule and the length of the run"
    )


def _look(step: Upcoming) -> Detail:
    """Looks at a step before it is made: its batch, its gradients, and its layers."""
    stage, state, program = step.stage, step.state, step.stage.program
    layout, parts = program.layout, program.num_microbatches
    gradient = make_sum_gradient(program.model, layout, 1, 0)

    @jax.jit
    def of_part(params: Params, portion: Mapping[str, jax.Array], rng: jax.Array) -> _Named:
        return to_named(gradient(params, portion, rng)[0])

    rng, whole = step_key(state.rng, state.step), jax.device_get(numbered(step.batch, layout))
    size = stage.batch_size // parts
    portions = [{n: x[i::parts] for n, x in whole.items() if n != "source"} for i in range(parts)]
    gradients = [
        jax.device_get(of_part(state.params, layout.put(portion, size), rng))
        for portion in portions
    ]
    return Detail(step.rows, gradients, jax.device_get(stage.probe(state.params, step.batch)))


def _layers(
    here: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, float]]:
    """Yields each array, or each layer of a stack, with its relative difference."""
    for name, values in here.items():
        if name not in there:
            continue
        if not is_stacked(name):
            yield name, _apart(values, there[name])
            continue
        for layer, pair in enumerate(zip(values, there[name], strict=True)):
            yield f"{name}, layer {layer}", _apart(*map(np.asarray, pair))


def _depth(place: str) -> tuple[bool, int]:
    """Returns a key that sorts the names of layers by their place in the forward pass."""
    return "decoder" in place, int(place.rpartition(" ")[2])


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the norm of a difference, relative to the norm of the first."""
    size = float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64)))
    return size / max(float(np.linalg.norm(a.astype(np.float64))), 1e-300) if size else 0.0


def _distance(a: Streamed, b: Streamed) -> float:
    """Returns the norm of the difference of two stored arrays, relative to that of the first."""
    squares = np.zeros(2)
    for x, y in zip(a.parts(), b.parts(), strict=True):
        x, y = (np.asarray(part, np.float64) for part in (x, y))
        squares += np.square(x - y).sum(), np.square(x).sum()
    return float(np.sqrt(squares[0] / max(squares[1], 1e-300)))


def _losses_in(path: Path) -> Iterator[tuple[int, Document]]:
    """Yields (step, loss by the name in a run) of a file, or of the only file in a folder."""
    flag = f"--against={shlex.quote(str(path))}"
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".csv"))
        if len(files) != 1:
            raise InputError(f"{flag}: holds no run, and {len(files)} files of losses; name one")
        path = files[0]
    if not path.is_file():
        raise InputError(f"{flag}: no such file or folder")
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows: list[Document] = list(csv.DictReader(file))
    else:
        rows = read_lines(path)
    known = {name for row in rows for name in row}
    step, loss = (next((n for n in names if n in known), None) for names in (STEPS, LOSSES))
    if step is None or loss is None:
        wanted = f"{' or '.join(STEPS)}, and of losses {', '.join(LOSSES)}"
        raise InputError(f"{flag}: its columns are {', '.join(sorted(known))}; expected {wanted}")
    for number, row in enumerate(rows, 1):
        if row.get(loss) in (None, ""):
            continue
        try:
            yield int(float(row[step])), {"train/loss": float(row[loss])}
        except (TypeError, ValueError):
            raise InputError(f"{flag}: row {number}: {step} and {loss} must be numbers") from None
