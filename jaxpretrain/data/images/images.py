"""Images to train and evaluate on, decoded and cut when they are read.

Sample k of a run, with its crop and its flip, is a pure function of (seed, k). So the whole state
of the data is one integer, and neither workers nor hosts change what a sample is.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Between, NonNegative
from jaxpretrain.config.schema import Mark
from jaxpretrain.data import contract
from jaxpretrain.data.images.image_codec import Box, Undecodable, decode, import_pillow, resized
from jaxpretrain.data.images.image_sources import Folder, ImageSet, Split, Tfds
from jaxpretrain.data.images.shards import Shards
from jaxpretrain.data.order.order import Order

if TYPE_CHECKING:
    from PIL import Image

Share = Annotated[float, Between(0, 1, "(]")]
Ratio = Annotated[float, Between(0, 100, "(]")]

NUM_TRIES = 10
NUM_DRAWS = 2 * NUM_TRIES + 3
"""The count of random numbers that one augmentation takes, used or not."""


@dataclass(frozen=True)
class Augment:
    """Random resized crop and flip, as in the training of Sapiens and MAE."""

    area: tuple[Share, Share] = (0.2, 1.0)
    """Least and greatest part of the picture's area that a crop takes."""
    aspect: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Least and greatest ratio of a crop's width to its height; drawn uniformly by logarithm."""
    flip: Annotated[float, Between(0, 1)] = 0.5
    """Probability of a mirror image, left for right."""

    def check(self) -> None:
        """Raises InputError for a least value above the greatest."""
        for name, (low, high) in (("area", self.area), ("aspect", self.aspect)):
            if low > high:
                raise InputError(f"data.augment.{name} is {low:g},{high:g}; it must rise")

    def __call__(self, image: "Image.Image", size: int, draws: np.ndarray) -> np.ndarray:
        """Returns a crop, uint8 [size, size, 3]; `draws` are NUM_DRAWS numbers in [0, 1)."""
        pixels = resized(image, self.box(*image.size, draws), size)
        return pixels[:, ::-1] if draws[-1] < self.flip else pixels

    def box(self, width: int, height: int, draws: np.ndarray) -> Box:
        """Returns the first of ten drawn boxes that fits in; else the middle of the picture."""
        areas = _between(*self.area, draws[:NUM_TRIES]) * (width * height)
        low, high = np.log(self.aspect)
        aspects = np.exp(_between(low, high, draws[NUM_TRIES : 2 * NUM_TRIES]))
        widths = np.rint(np.sqrt(areas * aspects)).astype(int)
        heights = np.rint(np.sqrt(areas / aspects)).astype(int)
        fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
        if not fits.any():
            return centre_box(width, height, self.aspect)
        first = fits.argmax()
        w, h = int(widths[first]), int(heights[first])
        left = int(draws[2 * NUM_TRIES] * (width - w + 1))
        top = int(draws[2 * NUM_TRIES + 1] * (height - h + 1))
        return left, top, left + w, top + h


def sample_draws(seed: int, sample: int, num: int) -> np.ndarray:
    """Returns `num` random numbers in [0, 1), float64, for one sample of the run."""
    key = np.array([seed % 2**64, sample], np.uint64)
    return (np.random.Philox(key=key).random_raw(num) >> np.uint64(11)) * 2.0**-53


def centre_box(width: int, height: int, aspect: tuple[float, float] = (1.0, 1.0)) -> Box:
    """Returns the largest box in the middle whose ratio of width to height lies in `aspect`."""
    low, high = aspect
    w, h = width, height
    if width / height < low:
        h = max(1, round(width / low))
    elif width / height > high:
        w = max(1, round(height * high))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _between(low: float, high: float, draws: np.ndarray) -> np.ndarray:
    return low + (high - low) * draws


MAX_STAND_INS = 100
"""The number of images that are tried for one sample before reading gives up."""


@dataclass(frozen=True)
class ImageData(contract.DataConfig):
    """Square RGB images for training and evaluation."""

    source: Folder | Tfds | Shards = Folder()
    """The place of the images."""
    size: Annotated[int, Between(1, 16384)] = 224
    """Side of an example in pixels."""
    augment: Annotated[Augment, Mark.SAME_SCORES] = Augment()
    """Random changes of training images; held-out ones are cut to their middle square."""
    validation_fraction: Annotated[float, Between(0, 1, "[)")] = 0.02
    """Part of the images held out, by a hash of their names, without a split for that; 0: none."""
    num_workers: Annotated[int, Between(0, 1024), Mark.NO_EFFECT, Mark.SAME_SCORES] = 0
    """Number of processes that read and decode; 0: a thread of the training process."""
    max_undecodable: Annotated[int, NonNegative, Mark.NO_EFFECT, Mark.SAME_SCORES] = 100
    """Number of undecodable images of a host that others stand in for; one more is an error."""

    @property
    def eval_name(self) -> str:
        """The name of the evaluation set."""
        return self.source.set_name()

    def example_spec(self) -> contract.Spec:
        """Returns the pixels of an image."""
        return {"images": ((self.size, self.size, 3), "uint8")}

    def units_per_example(self) -> tuple[str, int]:
        """Returns one image."""
        return "images", 1

    def open(self, *, seed: int, limits: Mapping[str, int]) -> "TrainingImages":
        """Opens the training images; `limits` says nothing about images."""
        (images, indices), (_, held_out) = self._find()
        order = self.order.make(len(indices), seed)
        self.check_num_examples(order.epoch_size, "images", images.place)
        division = hashlib.sha256(indices.tobytes()).hexdigest()
        content = [images.identity(), division, self.size, asdict(self.augment)]
        return TrainingImages(
            num_examples=order.epoch_size,
            notes=images.notes,
            images=images,
            indices=indices,
            order=order,
            seed=seed,
            size=self.size,
            augment=self.augment,
            num_workers=self.num_workers,
            num_held_out=len(held_out),
            fingerprint=contract.fingerprint([*content, self.order.identity()]),
            bad=BadImages(self.max_undecodable),
        )

    def open_evals(self, *, limits: Mapping[str, int]) -> list["HeldOutImages"]:
        """Opens the held-out images, where there are any."""
        _, (images, indices) = self._find()
        return [self._fixed(self.eval_name, images, indices)] if len(indices) else []

    def open_labelled(self, split: Literal["train", "validation"]) -> "HeldOutImages":
        """Opens a split as evaluation sees it; InputError where it has no labels or no images."""
        images, indices = self._find()[split == "validation"]
        if not images.classes:
            raise InputError(
                f"{images.place}: has no labels to classify by; a folder needs its images in"
                " one folder for each class, a TFDS dataset needs data.source.label_key, or set"
                " eval.probe=none"
            )
        if not len(indices):
            raise InputError(
                f"{images.place}: no images are held out to be classified; raise"
                " data.validation_fraction, name held-out images in data.source, or set"
                " eval.probe=none"
            )
        return self._fixed(split, images, indices)

    def _find(self) -> tuple[Split, Split]:
        """Returns the training images and the held-out ones."""
        import_pillow()
        self.augment.check()
        train, held_out = self.source.open(self.validation_fraction)
        if not len(train[1]):
            raise InputError(f"{train[0].place}: no image is left to train on")
        return train, held_out

    def _fixed(self, name: str, images: ImageSet, indices: np.ndarray) -> "HeldOutImages":
        return HeldOutImages(
            name=name,
            num_examples=len(indices),
            notes=images.notes,
            classes=images.classes,
            images=images,
            indices=indices,
            size=self.size,
            bad=BadImages(self.max_undecodable),
        )


class BadImages:
    """A list of names and reasons, with each image once, for all processes on one machine.

    It is a temporary file with a line for each image and process, because the processes that decode
    have nothing in common but the disk. The file is deleted with the object that made it.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._file = tempfile.NamedTemporaryFile(prefix="jaxpretrain-", suffix=".txt")  # noqa: SIM115
        self._path = Path(self._file.name)
        self._known: set[str] = set()
        self._num_reported = 0

    def add(self, name: str, reason: str) -> None:
        """Adds an image. Raises InputError where it is one more than the limit."""
        if name in self._known:
            return
        with self._path.open("a") as file:  # one write of one line: nothing comes between
            file.write(json.dumps([name, reason]) + "\n")
        self._known.add(name)
        lines = self._lines()
        if len(lines) > self._limit:
            raise InputError(
                f"{len(lines)} images cannot be decoded, the last is {lines[-1]}; repair the data,"
                f" or raise data.max_undecodable={self._limit}"
            )

    def _lines(self) -> list[str]:
        """Returns `name: reason` of all images, in the order in which they were found."""
        reasons: dict[str, str] = {}
        for line in self._path.read_text().splitlines():
            name, reason = json.loads(line)
            reasons.setdefault(name, reason)  # one process may put it otherwise than another
        return [f"{name}: {' '.join(reason.split())}" for name, reason in reasons.items()]

    def report(self) -> list[str]:
        """Returns a warning for each image that is new since the last call."""
        lines = self._lines()
        new, self._num_reported = lines[self._num_reported :], len(lines)
        return [f"warning: another image stands in for {line}" for line in new]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}


@dataclass(frozen=True, kw_only=True)
class TrainingImages(contract.TrainingData):
    """Training images; can be sent to other processes, which then read the same."""

    images: ImageSet
    indices: np.ndarray = field(repr=False)
    """The indices of the images that are trained on, int64 [n]."""
    order: Order
    seed: int
    size: int
    augment: Augment
    num_held_out: int
    bad: BadImages

    def batch(self, samples: np.ndarray) -> contract.Batch:
        """Returns {"images": uint8 [n, size, size, 3]} of the run's samples, int64 [n].

        Raises InputError for more undecodable images than the config allows.
        """
        pixels = np.empty((len(samples), self.size, self.size, 3), np.uint8)
        firsts = self.indices[self.order(samples)]
        for row, (sample, first) in enumerate(zip(samples, firsts, strict=True)):
            draws = sample_draws(self.seed, int(sample), NUM_DRAWS + MAX_STAND_INS)
            draws, choices = draws[:NUM_DRAWS], draws[NUM_DRAWS:]
            stand_ins = self.indices[(choices * len(self.indices)).astype(np.int64)]
            image = _first_decodable(self.images, [first, *stand_ins], self.bad)
            pixels[row] = self.augment(image, self.size, draws)
        return {"images": pixels}

    def report(self) -> list[str]:
        """Returns a line for each image that was found undecodable since the last call."""
        return self.bad.report()

    def describe(self) -> str:
        """Returns the source, the number of images, and the way that they are read."""
        workers = f"{self.num_workers} processes" if self.num_workers else "a thread"
        return (
            f"{self.images.place}: an epoch is {self.num_examples:,} images,"
            f" {self.num_held_out:,} are held out; random crops of {self.size} x {self.size}"
            f" pixels, decoded by {workers}"
        )


@dataclass(frozen=True, kw_only=True)
class HeldOutImages(contract.LabelledSet):
    """Images for evaluation, in the order of their set: the middle square, resized."""

    images: ImageSet
    indices: np.ndarray = field(repr=False)
    """The indices of the images of the set, int64 [n]."""
    size: int
    bad: BadImages

    def batch(self, indices: np.ndarray) -> contract.Batch:
        """Returns {"images": uint8 [n, size, size, 3]} of the examples at these indices.

        The next image of the set stands in for one that is undecodable.
        """
        pixels = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for row, index in enumerate(indices):
            image = _first_decodable(self.images, self._from(int(index)), self.bad)
            pixels[row] = resized(image, centre_box(*image.size), self.size)
        return {"images": pixels}

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns their classes, int32 [n]: where another image stands in, not that one's."""
        return self.images.labels(self.indices[indices])

    def _from(self, start: int) -> Iterable[int]:
        """Returns the images of the set from one on, for as long as a stand-in is searched."""
        steps = range(min(MAX_STAND_INS, self.num_examples))
        return (self.indices[(start + step) % self.num_examples] for step in steps)


def _first_decodable(images: ImageSet, candidates: Iterable[int], bad: BadImages) -> "Image.Image":
    for index in candidates:
        try:
            return decode(images.read(index))
        except Undecodable as error:
            bad.add(images.name(index), str(error))
    raise InputError(f"{images.place}: of all images tried for one example none can be decoded")
