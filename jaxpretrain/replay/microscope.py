"""The microscope: the losses of all tokens or patches of a step, and the gradients of examples.

It looks at a step before it is made, with the weights that the step begins with. Losses are those
of the model, and come in the microbatches of the run, so that they fit where the run did.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import numpy as np

from jaxpretrain.data.contract import Batch, TrainingData
from jaxpretrain.data.images.images import TrainingImages
from jaxpretrain.data.skip import positions, unskipped
from jaxpretrain.data.text.text import TrainingSequences
from jaxpretrain.evals.samples import grid, reduced
from jaxpretrain.inspection.batches import documents
from jaxpretrain.models.contract import ImageModel, LanguageModel, Params
from jaxpretrain.optim.layers import norms
from jaxpretrain.replay.stretch import Stretch, Upcoming
from jaxpretrain.train.program import Program
from jaxpretrain.train.stages import StageProgram
from jaxpretrain.train.step import step_key

MAX_PERIOD = 13
"""The longest pattern, in tokens, whose repetitions are counted."""
_Compiled = Callable[[Params, Mapping[str, jax.Array], jax.Array], dict[str, jax.Array]]


@dataclass(frozen=True)
class Place:
    """The place of an example in the data."""

    sample: int
    """The number of the sample in the run."""
    name: str
    """The name of the image, or the tokens in their file."""
    group: str
    """The file of the tokens, or the folder of the image."""
    source: str | None = None
    """The source in a mixture."""


@dataclass(frozen=True)
class Part:
    """An example of a batch, or a document in it."""

    step: int
    row: int
    place: Place
    loss: float
    """The mean over what counts, NaN where nothing does; nats for a token, else squared error."""
    weight: float
    """The number of tokens or patches that count."""
    first: int = 0
    """The first token in the row."""
    last: int = 0
    """The token after the last one in the row."""
    repeated: float = 0.0
    """The largest share of tokens that equal the one a short period before."""
    period: int = 0
    """The distance in tokens at which the most of them repeat."""
    gradient: float | None = None
    """The norm of its gradient, relative to the weight of the step as in the step's own norm; None
    where it was not computed."""
    layer: str = ""
    """The part of the model with the largest norm in it."""


@dataclass(frozen=True)
class View:
    """The losses of a step by token or patch, with its examples and documents."""

    step: int
    rows: Batch
    """The batch."""
    losses: np.ndarray
    """The loss of each token or patch, float32 [b, t] or [b, l]."""
    examples: list[Part]
    documents: list[Part] = field(default_factory=list)
    """The documents in the rows; [] of images."""
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    """Row -> image, seen patches, prediction and errors side by side, uint8 [height, width, 3]."""


class Microscope:
    """Looks at the steps of a stretch; `num_examples` of each are looked at more closely."""

    def __init__(self, stretch: Stretch, num_examples: int) -> None:
        self._stretch = stretch
        self._num_examples = num_examples
        self._compiled: dict[tuple[int, str], _Compiled] = {}

    def __call__(self, step: Upcoming) -> View:
        """Looks at a step, which stays as it is."""
        number, stage, state = step.number, step.stage, step.state
        rows = {**step.rows, "row": np.arange(stage.batch_size, dtype=np.int32)}
        size = stage.batch_size // stage.program.num_microbatches
        portions = [slice(at, at + size) for at in range(0, stage.batch_size, size)]
        rng = step_key(state.rng, state.step)
        look = partial(self._run, stage, "losses", state.params, rng=rng)
        found = [look({name: x[part] for name, x in rows.items()}) for part in portions]
        sums = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        places = self._places(number, stage.num_pieces)
        examples = [
            Part(number, row, place, _mean(loss, weight), float(weight))
            for row, (place, loss, weight) in enumerate(
                zip(places, sums["loss"], sums["weight"], strict=True)
            )
        ]
        view = View(number, rows, sums["parts"], examples)
        if "tokens" in rows:
            repeated = [_repetition(tokens) for tokens in rows["tokens"]]
            length = rows["tokens"].shape[1]
            examples = [
                replace(one, last=length, repeated=share, period=period)
                for one, (share, period) in zip(examples, repeated, strict=True)
            ]
            view = replace(view, examples=examples, documents=self._documents(view))
        chosen = self._chosen(examples)
        weight = float(sums["weight"].sum())
        for row in chosen:
            alone = self._alone(stage, rows, row)
            norm, layer = _largest(self._run(stage, "gradient", state.params, alone, rng))
            examples[row] = replace(examples[row], gradient=norm / max(weight, 1.0), layer=layer)
            if isinstance(stage.program.model, ImageModel):
                images = self._run(stage, "pictures", state.params, alone, rng)
                shown = [images[name][0] for name in ("image", "seen", "predicted")]
                shown.append(_error_map(view.losses[row], shown[0].shape))
                view.pictures[row] = grid([[reduced(image)] for image in shown])
        return replace(view, examples=examples)

    def _run(
        self,
        stage: StageProgram,
        what: str,
        params: Params,
        rows: Mapping[str, np.ndarray],
        rng: jax.Array,
    ) -> dict[str, np.ndarray]:
        """Runs a program on some rows; it is compiled once for each stage."""
        layout, size = stage.program.layout, len(rows["row"])
        batch, key = layout.put(rows, size), (stage.first, what)
        if key not in self._compiled:
            function = _PROGRAMS[what]
            jitted = jax.jit(partial(function, stage.program), out_shardings=layout.replicated)
            self._compiled[key] = jitted.lower(params, batch, rng).compile()
        return jax.device_get(self._compiled[key](params, batch, rng))

    def _alone(self, stage: StageProgram, rows: Batch, row: int) -> Batch:
        """Returns a row for each data-parallel device: copies, of which only the first weighs."""
        num = stage.program.layout.num_data
        alone = {name: np.repeat(x[row : row + 1], num, axis=0) for name, x in rows.items()}
        return alone | {"weight": (np.arange(num) == 0).astype(np.float32)}

    def _chosen(self, examples: Sequence[Part]) -> list[int]:
        """Returns the rows whose gradients are computed: high losses, and repeated tokens."""
        by_loss = sorted(examples, key=lambda one: -np.nan_to_num(one.loss))
        by_repetition = sorted(examples, key=lambda one: -one.repeated)
        most = self._num_examples
        chosen = [*by_loss[:most], *by_repetition[:most]]
        return list(dict.fromkeys(one.row for one in chosen))

    def _places(self, number: int, num_pieces: int) -> list[Place]:
        """Returns the places of the rows of a step."""
        samples = np.array(self._stretch.stages.samples(number))
        return [place for place in places(self._stretch.data, samples) for _ in range(num_pieces)]

    def _documents(self, view: View) -> list[Part]:
        """Returns the documents in the rows of a step, or the rows where their end is unknown."""
        eos_id, found = self._stretch.data.eos_id, []
        for one in view.examples:
            tokens, losses = view.rows["tokens"][one.row], view.losses[one.row]
            counts = view.rows.get("mask", np.ones_like(view.rows["tokens"]))[one.row] != 0
            counts = counts & (np.arange(len(tokens)) > 0)
            parts = [(0, len(tokens))] if eos_id is None else documents(tokens, eos_id)
            for first, last in parts:
                share, period = _repetition(tokens[first:last])
                weight = float(counts[first:last].sum())
                loss = _mean(losses[first:last].sum(), weight)
                found.append(
                    replace(
                        one, loss=loss, weight=weight, first=first, last=last,
                        repeated=share, period=period,
                    )
                )  # fmt: skip
        return found


def places(data: TrainingData, samples: np.ndarray) -> list[Place]:
    """Returns the places of samples of a run, int64 [n]."""
    own, (data, ranges) = samples, unskipped(data)
    samples = positions(samples, ranges)
    if isinstance(data, TrainingSequences):
        return [
            Place(sample, f"{one.file}, tokens {one.tokens[0]:,} to {one.tokens[1] - 1:,}",
                  one.file, one.source)
            for sample, one in zip(own.tolist(), data.locate(samples), strict=True)
        ]  # fmt: skip
    if isinstance(data, TrainingImages):
        names = [data.images.name(index) for index in data.indices[data.order(samples)]]
        return [
            Place(sample, name, name.rpartition("/")[0])
            for sample, name in zip(own.tolist(), names, strict=True)
        ]
    return [Place(sample, f"sample {sample:,}", "") for sample in own.tolist()]


def _losses(
    program: Program, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
) -> dict[str, jax.Array]:
    """Returns the sums of each example, and the losses of its parts."""
    model = program.model
    _, _, sums = model.loss(params, batch, rng)
    found = {name: sums[name] for name in ("loss", "weight")}
    if isinstance(model, LanguageModel):
        return found | {"parts": model.token_losses(params, batch)}
    if isinstance(model, ImageModel):
        return found | {"parts": model.patch_losses(params, batch, rng)}
    return found | {"parts": sums["loss"][:, None]}


def _gradient_norms(
    program: Program, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
) -> dict[str, jax.Array]:
    """Returns the norm of the gradient of the objective, `all`, and those of parts and layers."""
    gradient = jax.grad(lambda params: program.model.loss(params, batch, rng)[0])(params)
    norm, parts = norms(gradient)
    return parts | {"all": norm}


def _pictures(
    program: Program, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
) -> dict[str, jax.Array]:
    """Returns the images, their seen patches, and the predictions; [b, h, w, 3] in [0, 1]."""
    assert isinstance(program.model, ImageModel)
    images = program.model.reconstruct(params, batch, rng)
    return dict(zip(("image", "seen", "predicted"), images, strict=True))


_PROGRAMS = {"losses": _losses, "gradient": _gradient_norms, "pictures": _pictures}
"""Name -> function of a program, parameters, rows of a batch and the key of the step."""


def _largest(norms: dict[str, np.ndarray]) -> tuple[float, str]:
    """Returns the norm of a gradient, and the part of the model or of a layer with the largest."""
    parts = {
        f"{part}, layer {layer}" if values.ndim else part: float(value)
        for part, values in norms.items()
        if part != "all" and not part.endswith("blocks")
        for layer, value in enumerate(np.atleast_1d(values))
    }
    return float(norms["all"]), max(parts, key=lambda part: parts[part])


def _error_map(errors_l: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the errors of the patches of an image as its picture, white where it is largest."""
    height, width, channels = shape
    size = round((height * width / len(errors_l)) ** 0.5)
    map_hw = np.kron(errors_l.reshape(height // size, width // size), np.ones((size, size)))
    return np.repeat(map_hw[..., None] / max(float(errors_l.max()), 1e-30), channels, axis=2)


def _mean(total: float, weight: float) -> float:
    return float(total) / float(weight) if weight else float("nan")


def _repetition(tokens: np.ndarray) -> tuple[float, int]:
    """Returns the largest share of tokens that equal the one a period before, and the period."""
    shares = [
        float(np.mean(tokens[period:] == tokens[:-period])) if len(tokens) > 2 * period else 0.0
        for period in range(1, MAX_PERIOD + 1)
    ]
    return max(shares), int(np.argmax(shares)) + 1
