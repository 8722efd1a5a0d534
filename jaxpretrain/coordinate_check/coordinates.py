"""The coordinate check: do the sizes of what a model computes depend on its width or depth?

Models of several sizes make the first steps of a run at the peak of the learning rate. On one batch
the root mean squares of activations, attention logits and logits are compared, and of their changes
since initialization. Where settings are shared by sizes (`models.scaling`), changes do not depend
on the size: the slope of log change over log size is zero.

Source: Yang et al., Tensor Programs V (arXiv 2203.03466), appendix D.1.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import Document
from jaxpretrain.data.skip import open_training
from jaxpretrain.devices.memory import Device
from jaxpretrain.display.progress import MAX_SILENCE, Progress
from jaxpretrain.display.wording import format_known, format_table
from jaxpretrain.models.choices import require_divisible
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.stack import is_stacked
from jaxpretrain.optim.layers import norms
from jaxpretrain.optim.schedules import Constant
from jaxpretrain.train.experiment import Experiment, Resolved, resolve
from jaxpretrain.train.program import Program, make_program

MAX_SLOPE = 0.1
"""The largest slope of a change that counts as flat."""
MAX_INITIAL_SLOPE = 0.05
"""The largest slope of a size at initialization; sizes may shrink, as logits do under muP."""
FIRST_STEP = 2
"""The first step whose changes count. The gradient of the first one is that of a fresh model."""
NUM_EXAMPLES = 4
"""The examples of a batch on which activations are compared."""

Axis = Literal["width", "depth"]
Kind = Literal["size", "change", "update"]
_Row = dict[str, np.ndarray]
"""Root mean squares of one step by kind and quantity, `size/activation/blocks`, by layer."""
_Values = dict[tuple[Kind, str], np.ndarray]
"""Root mean squares [steps, layers] by kind and quantity; the first step is the initialization."""


@dataclass(frozen=True)
class Slope:
    """The slopes of a quantity of one layer over the size of the model."""

    axis: Axis
    kind: Kind
    quantity: str
    layer: int | str | None
    """The layer from the bottom; middle or top over depths; none outside of layers."""
    slopes: list[float]
    """The slope at each step; the first one is the initialization."""


def check_coordinates(
    config: Experiment,
    *,
    widths: Sequence[int],
    depths: Sequence[int],
    num_seeds: int,
    num_steps: int,
    devices: Sequence[Device] | None = None,
) -> Document:
    """Trains the sizes for some steps; returns sizes, slopes and the verdict.

    `widths` are values of model.d_model, whose heads keep their size; `depths` those of
    model.num_layers, at the width of the config. `devices` are all of the machine by default.

    Raises:
      InputError: a size does not fit, or there are fewer than two of each kind that is given.
    """
    families: dict[Axis, dict[int, Experiment]] = {
        "width": {width: _of_width(config, width) for width in widths},
        "depth": {depth: _of_depth(config, depth) for depth in depths},
    }
    for axis, sizes in families.items():
        if len(sizes) == 1:
            raise InputError(f"--{axis}s: a slope takes two sizes or more, without repetition")
    chosen = devices or jax.devices()
    for experiment in (one for sizes in families.values() for one in sizes.values()):
        # A size that does not fit is refused before others are trained.
        experiment.model.build(experiment.data.example_spec(), platform=chosen[0].platform)
    measured: dict[Axis, dict[int, _Values]] = {"width": {}, "depth": {}}
    total = (len(widths) + len(depths)) * num_seeds * (num_steps + 1)
    with Progress(total) as progress:
        done, told = 0, time.monotonic()
        for axis, sizes in families.items():
            for size, experiment in sizes.items():
                with progress.activity(f"compiling {axis} {size}"):
                    compiled, batches = _prepare(experiment, num_steps, chosen)
                runs: list[list[_Row]] = [[] for _ in range(num_seeds)]
                for seed, rows in enumerate(runs, start=config.seed):
                    for row in _measure(compiled, batches, seed):
                        rows.append(row)
                        done += 1
                        is_due = time.monotonic() - told > MAX_SILENCE
                        progress.update(done, {} if is_due else None)
                        told = time.monotonic() if is_due else told
                measured[axis][size] = _mean([*map(_joined, runs)])
    slopes = [slope for axis in families for slope in _slopes(axis, measured[axis])]
    return _document(config, measured, slopes)


def _of_width(config: Experiment, width: int) -> Experiment:
    """Returns the experiment with a model of a width, with heads of the same size."""
    model = config.model
    require_divisible((model.d_model, model.num_heads, "model.d_model by model.num_heads"))
    head_dim = model.d_model // model.num_heads
    if width % head_dim:
        raise InputError(f"--widths={width}: no multiple of the head size {head_dim}")
    changes = {"d_model": width, "num_heads": width // head_dim}
    grown = {"d_ff": model.d_ff}
    if isinstance(model, Decoder) and model.num_kv_heads is not None:
        grown["num_kv_heads"] = model.num_kv_heads
    for name, size in grown.items():
        changes[name], rest = divmod(size * width, model.d_model)
        if rest:
            raise InputError(
                f"--widths={width}: model.{name}={size} at width {model.d_model} has no whole "
                "counterpart there"
            )
    return replace(config, model=replace(model, **changes))


def _of_depth(config: Experiment, depth: int) -> Experiment:
    return replace(config, model=replace(config.model, num_layers=depth))


def _prepare(
    config: Experiment, num_steps: int, devices: Sequence[Device]
) -> tuple["_Measured", list[dict[str, np.ndarray]]]:
    """Returns what is compiled, and the batches of the first steps."""
    peak = Constant(peak=config.optim.schedule.peak, warmup=0)
    experiment = resolve(replace(config, optim=replace(config.optim, schedule=peak)))
    if experiment.timeline.num_steps < num_steps:
        raise InputError(f"--steps={num_steps}: the run has {experiment.timeline.num_steps}")
    program = make_program(experiment, devices)
    return _Measured.of(program), list(_batches(experiment, program, num_steps))


def _batches(
    experiment: Resolved, program: Program, num_steps: int
) -> Iterator[dict[str, np.ndarray]]:
    limits = program.model.input_limits()
    data = open_training(experiment.data.unhashed(), seed=experiment.seed, limits=limits)
    for step in range(1, num_steps + 1):
        samples = experiment.timeline.pace.samples(step)
        yield dict(data.batch(np.arange(samples.start, samples.stop)))


@dataclass(frozen=True)
class _Measured:
    """A program with what is measured of it, compiled."""

    program: Program
    step: jax.stages.Compiled
    see: Callable[..., dict[str, jax.Array]]
    """A function from parameters and a batch to what layers compute."""
    compare: Callable[..., dict[str, jax.Array]]
    """A function from two such results to root mean squares by layer."""

    @classmethod
    def of(cls, program: Program) -> "_Measured":
        model, key = program.model, jax.random.key(0)

        def rms(x: jax.Array, name: str) -> jax.Array:
            axes = tuple(range(int(is_stacked(name)), x.ndim))
            return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes))

        @jax.jit
        def compare(now, first):
            sizes = {f"size/{name}": rms(x, name) for name, x in now.items()}
            return sizes | {f"change/{name}": rms(x - first[name], name) for name, x in now.items()}

        see = jax.jit(lambda params, batch: model.coordinates(params, batch, key))
        return cls(program, program.compile(), see, compare)


def _measure(
    measured: _Measured, batches: Sequence[dict[str, np.ndarray]], seed: int
) -> Iterator[_Row]:
    """Yields the root mean squares at initialization and after each step."""
    program, batch_size = measured.program, measured.program.experiment.train.batch_size
    state = program.create_state(seed)
    watched = {name: rows[:NUM_EXAMPLES] for name, rows in batches[0].items()}
    first = measured.see(state.params, watched)
    yield jax.device_get(measured.compare(first, first))
    for batch in batches:
        before = jax.tree.map(jnp.copy, state.params)
        state, _ = measured.step(state, program.layout.put(batch, batch_size))
        seen = measured.compare(measured.see(state.params, watched), first)
        yield jax.device_get(seen | _updates(state.params, before))


@jax.jit
def _updates(now, before):
    """Returns the root mean squares of the updates of each part."""
    update = norms(jax.tree.map(jnp.subtract, now, before))[1]
    counts = norms(jax.tree.map(jnp.ones_like, now))[1]
    return {f"update/{part}": update[part] / counts[part] for part in update}


def _joined(rows: Sequence[_Row]) -> _Values:
    """Returns the values of all steps; updates have none at initialization."""
    values: _Values = {}
    for name in rows[-1]:
        kind, _, quantity = name.partition("/")
        missing = np.full_like(rows[-1][name], np.nan)
        table = np.stack([row.get(name, missing) for row in rows])
        values[kind, quantity] = table.reshape(len(rows), -1)  # pyright: ignore[reportArgumentType]
    return values


def _mean(runs: Sequence[_Values]) -> _Values:
    """Returns geometric means over seeds: slopes are about logarithms."""
    with np.errstate(divide="ignore"):
        return {key: np.exp(np.mean([np.log(run[key]) for run in runs], 0)) for key in runs[0]}


def _slopes(axis: Axis, measured: dict[int, _Values]) -> Iterator[Slope]:
    if not measured:
        return
    x = np.log2([*measured])
    for kind, quantity in next(iter(measured.values())):
        tables = [values[kind, quantity] for values in measured.values()]
        labels: list[int | str | None] = [None]
        if is_stacked(quantity):
            labels = [*range(tables[0].shape[1])]
        if axis == "depth" and is_stacked(quantity):
            labels, tables = _at_equal_depths(quantity, tables)
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.log2(np.stack(tables))  # [sizes, steps, layers]
            centred = (x - x.mean())[:, None, None]
            table = np.sum(centred * (y - y.mean(0)), 0) / np.sum(centred**2)
        for place, label in enumerate(labels):
            yield Slope(axis, kind, quantity, label, table[:, place].tolist())


def _at_equal_depths(
    quantity: str, tables: Sequence[np.ndarray]
) -> tuple[list[int | str | None], list[np.ndarray]]:
    """Returns the layers of tables [steps, layers] that lie at equal parts of the depth.

    These are the outputs of the middle and the top; the input of attention lies below its layer, so
    that only the layer above the middle is comparable.
    """
    if quantity.startswith("attention_logit"):
        return ["middle"], [table[:, [table.shape[1] // 2]] for table in tables]
    places = [[max(table.shape[1] // 2 - 1, 0), table.shape[1] - 1] for table in tables]
    return ["middle", "top"], [table[:, rows] for table, rows in zip(tables, places, strict=True)]


def _document(
    config: Experiment, measured: dict[Axis, dict[int, _Values]], slopes: Sequence[Slope]
) -> Document:
    steps = len(slopes[0].slopes) - 1
    changes = [s for s in slopes if s.kind == "change"]
    initial = [s for s in slopes if s.kind == "size"]
    largest = _largest(abs(v) for s in changes for v in s.slopes[min(FIRST_STEP, steps) :])
    grown = _largest(s.slopes[0] for s in initial)
    flat = False
    if largest is not None and grown is not None:
        flat = largest <= MAX_SLOPE and grown <= MAX_INITIAL_SLOPE
    return {
        "scaling": config.model.scaling,
        "base_width": config.model.base_width,
        "base_depth": config.model.base_depth,
        "peak": config.optim.schedule.peak,
        "num_steps": steps,
        "widths": [*measured["width"]],
        "depths": [*measured["depth"]],
        "slopes": [vars(slope) | {"slopes": _known(slope.slopes)} for slope in slopes],
        "max_abs_slope": largest,
        "max_initial_slope": grown,
        "flat": flat,
        "sizes": [
            {
                "axis": axis,
                "size": size,
                "kind": kind,
                "quantity": quantity,
                "layers": [_known(column) for column in table.T.tolist()],
            }
            for axis, sizes in measured.items()
            for size, values in sizes.items()
            for (kind, quantity), table in values.items()
        ],
    }


def _largest(slopes: Iterable[float]) -> float | None:
    """Returns the largest slope; None where one is unknown, because a size diverged or vanished."""
    largest = float(np.max([*slopes]))  # unlike max, it keeps NaN
    return largest if math.isfinite(largest) else None


def _known(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def tell(document: Document) -> list[str]:
    """Returns the verdict and the steepest slopes as lines."""
    rows: list[tuple[str | float | None, ...]] = [
        ("quantity", "layer", "over", "at start", "largest of changes")
    ]
    by_key = {(s["axis"], s["kind"], s["quantity"], s["layer"]): s for s in document["slopes"]}
    first = min(FIRST_STEP, document["num_steps"])
    for (axis, kind, quantity, layer), slope in by_key.items():
        if kind != "size":
            continue
        change = by_key[axis, "change", quantity, layer]["slopes"]
        steepest = max((v for v in change[first:] if v is not None), key=abs, default=None)
        shown = "-" if layer is None else str(layer)
        signed = [format_known(value, "+.3f", "-") for value in (slope["slopes"][0], steepest)]
        rows.append((quantity, shown, axis, *signed))
    verdict = "flat" if document["flat"] else "NOT flat"
    limits = f"at most {MAX_SLOPE:g} in size, at the start at most {MAX_INITIAL_SLOPE:g} upwards"
    return [
        *format_table(rows),
        f"{verdict} under model.scaling={document['scaling']}: the largest slope of a change is "
        f"{format_known(document['max_abs_slope'], '.3f')}, the largest at the start "
        f"{format_known(document['max_initial_slope'], '+.3f')} (flat: {limits})",
    ]
