"""The part of a picture that an example shows: drawn for training, fixed for evaluation.

The draws of sample k are a pure function of (seed, k): raw output of NumPy's Philox, which is the
same on every machine and in every version.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Between
from jaxpretrain.data.images.image_codec import Box, resized

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
