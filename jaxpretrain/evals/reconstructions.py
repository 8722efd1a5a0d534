"""Pictures of images as a masked autoencoder sees and paints them: one row an image."""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Between
from jaxpretrain.data.contract import EvalSet
from jaxpretrain.evals.contract import Evaluation, Evaluator, Results, Setting
from jaxpretrain.models.contract import Batch, ImageModel, Params

MAX_SIDE = 256
"""Pixels of an image in the picture; larger ones are reduced by a whole factor."""
_GAP = 2  # white pixels between images


@dataclass(frozen=True)
class Reconstructions(Evaluation):
    """Pictures at each evaluation: an image, what is seen of it, and the image as painted."""

    num_images: Annotated[int, Between(1, 1000)] = 8
    """Held-out images that are shown, from all over the set, each time with the same masks."""

    def build(self, setting: Setting) -> "Painter":
        """Returns the evaluator; the model must paint images, and some must be held out."""
        model = setting.model
        if not isinstance(model, ImageModel):
            raise InputError("eval.samples=reconstructions: this model paints no images")
        if not setting.eval_sets:
            raise InputError(
                "eval.samples=reconstructions: no images are held out; raise "
                "data.validation_fraction, name held-out images in data.source, or set "
                "eval.samples=none"
            )
        return Painter(model, setting, self.num_images)


class Painter(Evaluator):
    """Paints one picture for each held-out set."""

    def __init__(self, model: ImageModel, setting: Setting, num_images: int) -> None:
        self._model = model
        self._setting = setting
        self._layout = setting.layout
        self._num_images = num_images
        num_data = self._layout.num_data
        self._batch_size = -(-num_images // num_data) * num_data

    def compile(self) -> None:
        """Compiles the painting of a batch."""
        spec = dict(self._model.batch_spec(self._batch_size))
        spec["row"] = jax.ShapeDtypeStruct((self._batch_size,), np.int32)

        def paint(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            return self._model.reconstruct(params, batch, jax.random.key(0))

        jitted = jax.jit(paint, out_shardings=self._layout.replicated)
        self._paint = jitted.lower(self._setting.params, self._layout.batch_spec(spec)).compile()

    def __call__(self, params: Params) -> Results:
        """Returns `<set>/reconstructions`: uint8 [height, width, 3]."""
        sets = self._setting.eval_sets
        return Results(images={f"{s.name}/reconstructions": self._picture(params, s) for s in sets})

    def _picture(self, params: Params, eval_set: EvalSet) -> np.ndarray:
        shown = min(self._num_images, eval_set.num_examples)
        # From all over the set, which may be sorted by class; what fills the batch is not shown.
        spread = np.linspace(0, eval_set.num_examples - 1, shown).astype(np.int64)
        rows = np.resize(spread, self._batch_size)[self._layout.local_rows(self._batch_size)]
        batch = {**eval_set.batch(rows), "row": rows.astype(np.int32)}
        columns = jax.device_get(self._paint(params, self._layout.put(batch, self._batch_size)))
        return grid([[reduced(image) for image in column[:shown]] for column in columns])


def grid(columns: list[list[np.ndarray]]) -> np.ndarray:
    """Returns one picture, uint8, of columns of images [h, w, 3] in [0, 1]."""
    gaps = ((0, _GAP), (0, _GAP), (0, 0))
    padded = [[np.pad(image, gaps, constant_values=1.0) for image in column] for column in columns]
    picture = np.concatenate([np.concatenate(column) for column in padded], axis=1)[:-_GAP, :-_GAP]
    return np.round(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)


def reduced(image_hwc: np.ndarray) -> np.ndarray:
    """Returns an image no larger than `MAX_SIDE`: means of whole squares of pixels."""
    height, width, _ = image_hwc.shape
    factor = math.ceil(max(height, width) / MAX_SIDE)
    cut = image_hwc[: height // factor * factor, : width // factor * factor]
    return cut.reshape(height // factor, factor, width // factor, factor, 3).mean(axis=(1, 3))
