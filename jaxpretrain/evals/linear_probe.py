"""A few-shot classifier on a frozen encoder, fitted in closed form.

Ridge regression from features to classes, for several numbers of images a class and several
draws, always beside the same probe on a random initialisation: a random encoder keeps a good deal
of an image, and only what lies above it was learned. After the few-shot probe of big_vision, which
needs neither an optimizer nor its settings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Between, Positive
from jaxpretrain.data.contract import LabelledSet, LabelledSource
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.evals.contract import Evaluation, Evaluator, Results, Setting
from jaxpretrain.evals.scoring.scorer import read_back
from jaxpretrain.models.contract import Batch, ImageModel, Params


@dataclass(frozen=True)
class LinearProbe(Evaluation):
    """A linear classifier of frozen features at each evaluation."""

    data: ImageData | None = None
    """Labelled images, of the size of the run's; none: those of the run."""
    shots: tuple[Annotated[int, Positive], ...] = (1, 5, 10)
    """Numbers of labelled images of each class; each number has a classifier of its own."""
    num_seeds: Annotated[int, Between(1, 1000)] = 3
    """Draws of such images, each with a random encoder of its own to compare with."""
    features: Literal["mean", "class"] = "mean"
    """mean: the mean of all patches' features. class: the features of the class token."""
    l2: Annotated[float, Positive] = 10.0
    """Weight of the squared coefficients; features are standardised."""
    max_images: Annotated[int, Positive] | None = 1000
    """Largest number of held-out images that are classified, the first ones; none: all."""

    def build(self, setting: Setting) -> "Probe":
        """Returns the evaluator; the images need labels, and some must be held out."""
        model = setting.model
        if not isinstance(model, ImageModel):
            raise InputError("eval.probe: this model has no features of images")
        source = self.data or setting.source
        if not isinstance(source, LabelledSource):
            raise InputError("eval.probe: the run's data are no images; set eval.probe.data")
        if source.example_spec() != setting.source.example_spec():
            raise InputError("eval.probe.data: its images are not of the size of the run's")
        if not self.shots:
            raise InputError("eval.probe.shots is empty: name numbers of images a class")
        return Probe(model, source, setting, self)


class Probe(Evaluator):
    """Measures accuracies on held-out images."""

    def __init__(
        self, model: ImageModel, source: LabelledSource, setting: Setting, config: LinearProbe
    ) -> None:
        self._model = model
        self._setting = setting
        self._layout = setting.layout
        self._batch_size = setting.batch_size
        self._config = config
        self._name = source.eval_name
        self._train, self._test = (source.open_labelled(s) for s in ("train", "validation"))
        num_test = min(self._test.num_examples, config.max_images or self._test.num_examples)
        self._test_indices = np.arange(num_test)
        labels = self._train.labels(np.arange(self._train.num_examples))
        self._draws = [
            draw_shots(labels, self._train.classes, max(config.shots), seed)
            for seed in range(config.num_seeds)
        ]
        self._random: np.ndarray | None = None

    def compile(self) -> None:
        """Compiles the features of a batch."""
        model, params = self._model, self._setting.params

        def encode(params: Params, batch: Batch) -> jax.Array:
            features_btd = model.encode(params, batch["images"]).astype(jnp.float32)
            if self._config.features == "class":
                return features_btd[:, 0]
            return jnp.mean(features_btd[:, 1:], axis=1)

        spec = self._layout.batch_spec(model.batch_spec(self._batch_size))
        jitted = jax.jit(encode, out_shardings=self._layout.replicated)
        self._encode = jitted.lower(params, spec).compile()
        shardings = jax.tree.map(lambda s: s.sharding, params)
        init = lambda seed: model.init(jax.random.key(seed))  # noqa: E731
        self._init = jax.jit(init, out_shardings=shardings)

    def __call__(self, params: Params) -> Results:
        """Returns `eval/<set>/probe_<n>shot` and, for random encoders, `..._random_init`.

        They are means over the draws, with `..._stderr`, their standard error.
        """
        if self._random is None:
            # One encoder after the other: the devices hold no two of them.
            self._random = np.concatenate(
                [self._accuracies(self._init(i), [draw]) for i, draw in enumerate(self._draws)]
            )
        learned = self._accuracies(params, self._draws)
        scalars: dict[str, float | None] = {}
        for i, shots in enumerate(self._config.shots):
            for suffix, found in (("", learned[:, i]), ("_random_init", self._random[:, i])):
                name = f"eval/{self._name}/probe_{shots}shot{suffix}"
                scalars[name] = float(np.mean(found))
                if len(found) > 1:
                    scalars[f"{name}_stderr"] = float(np.std(found, ddof=1) / len(found) ** 0.5)
        return Results(scalars=scalars)

    def _accuracies(self, params: Params, draws: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the accuracy of each draw with each number of shots, [draws, shots]."""
        labels = self._test.labels(self._test_indices)
        test_nd = self._features(params, self._test, self._test_indices)
        found = []
        for draw_cs in draws:
            train_csd = self._features(params, self._train, draw_cs.ravel())
            train_csd = train_csd.reshape(*draw_cs.shape, -1)
            for shots in self._config.shots:
                train_nd = train_csd[:, :shots].reshape(-1, train_csd.shape[-1])
                train_labels = np.repeat(np.arange(len(draw_cs)), shots)
                predicted = classify(train_nd, train_labels, test_nd, self._config.l2)
                found.append(float(np.mean(predicted == labels)))
        return np.array(found).reshape(len(draws), -1)

    def _features(self, params: Params, images: LabelledSet, indices: np.ndarray) -> np.ndarray:
        """Returns float64 [n, d]; the last batch is filled up with its last image."""

        def encoded() -> Iterator[jax.Array]:
            for start in range(0, len(indices), self._batch_size):
                rows = start + self._layout.local_rows(self._batch_size)
                batch = images.batch(indices[np.minimum(rows, len(indices) - 1)])
                yield self._encode(params, self._layout.put(batch, self._batch_size))

        parts = list(read_back(encoded(), self._setting.between_batches))
        return np.concatenate(parts).astype(np.float64)[: len(indices)]


def draw_shots(labels: np.ndarray, classes: Sequence[str], shots: int, seed: int) -> np.ndarray:
    """Returns indices [classes, shots] of images, none twice; InputError: a class has too few."""
    random = np.random.default_rng(seed)
    drawn = []
    for label, name in enumerate(classes):
        indices = np.flatnonzero(labels == label)
        if len(indices) < shots:
            raise InputError(
                f"eval.probe.shots: the class {name} has {len(indices)} images to train on, not"
                f" {shots}; set eval.probe.shots to fewer, or eval.probe=none"
            )
        drawn.append(random.permutation(indices)[:shots])
    return np.stack(drawn)


def classify(
    train_nd: np.ndarray, labels: np.ndarray, test_md: np.ndarray, l2: float
) -> np.ndarray:
    """Returns classes [m] of the test features by ridge regression with an intercept.

    Features are standardised by the training ones, targets are +1 for the class and -1 for others.
    Solved in the smaller of the two equivalent forms, as there are fewer images than features.
    """
    mean_d, deviation_d = train_nd.mean(axis=0), train_nd.std(axis=0)
    scale_d = np.where(deviation_d > 0, deviation_d, 1.0)
    x_nd, z_md = (train_nd - mean_d) / scale_d, (test_md - mean_d) / scale_d
    targets_nc = 2.0 * (labels[:, None] == np.arange(labels.max() + 1)) - 1.0
    mean_c = targets_nc.mean(axis=0)
    kernel_nn = x_nd @ x_nd.T + l2 * np.eye(len(x_nd))
    return np.argmax(z_md @ x_nd.T @ np.linalg.solve(kernel_nn, targets_nc - mean_c) + mean_c, 1)
