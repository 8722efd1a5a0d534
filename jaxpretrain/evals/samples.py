"""Samples that are logged at each evaluation: continued texts, and pictures of painted images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Between, Positive
from jaxpretrain.data.contract import EvalSet
from jaxpretrain.data.token_files.tokenizer import encoder, read_tokenizer
from jaxpretrain.evals.contract import Evaluation, Evaluator, Results, Setting
from jaxpretrain.evals.generation.generator import Generator
from jaxpretrain.evals.generation.token_loop import Sampling
from jaxpretrain.models.contract import Batch, ImageModel, Params

_PROMPT_TOKENS = 8
"""The largest number of tokens of a held-out document that make a prompt."""


@dataclass(frozen=True)
class Continuations(Evaluation):
    """Texts that the model continues at each evaluation, logged as samples."""

    prompts: tuple[str, ...] | Literal["held_out"] = "held_out"
    """Texts to continue. held_out: the beginning of the first document of each validation set, or
    nothing where the data has no tokenizer."""
    num_tokens: Annotated[int, Positive] = 48
    """Largest number of tokens of each continuation."""

    def build(self, setting: Setting) -> "Continuer":
        """Returns the evaluator; raises InputError without a tokenizer, or for a bad prompt."""
        prompts = held_out_prompts(setting) if self.prompts == "held_out" else self.prompts
        return Continuer(setting, prompts, self.num_tokens)


class Continuer(Evaluator):
    """Continues fixed prompts with a fixed seed, so that runs compare."""

    def __init__(self, setting: Setting, prompts: Sequence[str], num_tokens: int) -> None:
        self._prompts = prompts
        self._num_tokens = num_tokens
        self._generator = None
        if prompts:
            if setting.tokenizer_path is None:
                raise InputError(
                    "eval.samples.prompts need a tokenizer, and the data has none (no manifest)"
                )
            parts = setting.model, setting.layout, setting.tokenizer_path
            self._generator = Generator(*parts, end_ids=setting.end_ids)
            for prompt in prompts:
                self._generator.encode(prompt)  # refused now, not at the first evaluation

    def __call__(self, params: Params) -> Results:
        """Returns `samples/<i>`: the prompt and its continuation."""
        if self._generator is None:
            return Results()
        generated = self._generator(params, self._prompts, self._num_tokens, Sampling())
        pairs = zip(self._prompts, generated, strict=True)
        return Results(texts={f"samples/{i}": f"{a}|{b.text}" for i, (a, b) in enumerate(pairs)})


def held_out_prompts(setting: Setting) -> list[str]:
    """Returns the words that each validation set begins with; [] without a tokenizer."""
    if setting.tokenizer_path is None:
        return []
    tokenizer = encoder(read_tokenizer(setting.tokenizer_path), setting.tokenizer_path)
    prompts = []
    for eval_set in setting.eval_sets:
        tokens = eval_set.batch(np.arange(1))["tokens"][0]
        # Files begin with a document; a quarter of the context leaves room for what follows.
        num_tokens = max(1, min(_PROMPT_TOKENS, len(tokens) // 4))
        ends = np.flatnonzero(np.isin(tokens, setting.end_ids))
        document = tokens[: ends[0]] if len(ends) else tokens
        text = tokenizer.decode(document[:num_tokens].tolist()).rstrip("\ufffd")
        whole_words = text.rpartition(" ")[0] if len(document) > num_tokens else text
        prompts.append(whole_words if whole_words.strip() else text)
    return [prompt for prompt in prompts if prompt]


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
