import math

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.data.images.augment import NUM_DRAWS, Augment, centre_box, sample_draws
from jaxpretrain.data.images.image_codec import resized

Image = pytest.importorskip("PIL.Image")

Box = tuple[int, int, int, int]


def _draws(sample: int) -> np.ndarray:
    return sample_draws(0, sample, NUM_DRAWS)


def _one_by_one(width: int, height: int, draws: np.ndarray) -> Box:
    """The published rule, written as a loop."""
    u = iter(zip(draws[:10], draws[10:20], strict=True))
    for area, aspect in u:
        target = width * height * (0.2 + 0.8 * area)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[20] * (width - w + 1)), int(draws[21] * (height - h + 1))
            return left, top, left + w, top + h
    return centre_box(width, height, (3 / 4, 4 / 3))


@pytest.mark.parametrize("size", [(640, 480), (300, 1000), (50, 50), (2000, 90), (1, 1)])
def test_boxes_follow_the_published_rule(size: tuple[int, int]):
    for sample in range(300):
        assert Augment().box(*size, _draws(sample)) == _one_by_one(*size, _draws(sample))


def test_boxes_have_the_areas_and_aspects_asked_for():
    boxes = np.array([Augment().box(1000, 800, _draws(sample)) for sample in range(2000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 1000 and bottom.max() <= 800
    area = (right - left) * (bottom - top) / (1000 * 800)
    aspect = (right - left) / (bottom - top)
    assert 0.199 < area.min() < 0.22 and 0.95 < area.max() <= 1.0
    assert 0.745 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.34
    assert abs(np.mean(left / (1000 - (right - left) + 1e-9)) - 0.5) < 0.03  # anywhere alike


def test_what_no_box_fits_gives_its_middle():
    assert Augment().box(1000, 10, _draws(0)) == (493, 0, 506, 10)  # at most 4/3 as wide as high
    assert centre_box(10, 1000, (3 / 4, 4 / 3)) == (0, 493, 10, 506)


@pytest.mark.parametrize(
    ("size", "box"),
    [((64, 48), (8, 0, 56, 48)), ((48, 65), (0, 8, 48, 56)), ((7, 7), (0, 0, 7, 7))],
)
def test_the_middle_square(size: tuple[int, int], box: Box):
    assert centre_box(*size) == box


def test_half_of_the_images_are_mirrored():
    gradient = np.zeros((32, 32, 3), np.uint8)
    gradient[:] = np.arange(0, 256, 8, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(gradient)

    def num_mirrored(augment: Augment) -> int:
        cuts = [augment(image, 8, _draws(sample)).astype(int) for sample in range(1000)]
        return sum(cut[0, 0, 0] > cut[0, -1, 0] for cut in cuts)

    assert num_mirrored(Augment(flip=0.0)) == 0
    assert num_mirrored(Augment(flip=1.0)) == 1000
    assert 430 < num_mirrored(Augment()) < 570  # 500, deviation 16


def test_draws_depend_on_seed_and_sample_alone():
    draws = np.array([sample_draws(seed, k, 1000) for seed in (0, 1, -1) for k in (0, 1, 10**12)])
    again = sample_draws(1, 10**12, 1000)
    np.testing.assert_array_equal(draws[5], again)
    assert len(np.unique(draws)) == draws.size
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.02


def test_draws_stay_what_they_are():
    """Philox4x64-10 is a fixed function: other numbers would change every run."""
    expected = [0.08910064623458391, 0.33189185276481004, 0.16520897668188295]
    assert sample_draws(3, 5, 3).tolist() == expected


def test_what_lies_around_a_box_does_not_leak_into_it():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[10:30, 10:30] = 100
    assert (resized(Image.fromarray(pixels), (10, 10, 30, 30), 8) == 100).all()


@pytest.mark.parametrize(
    ("augment", "complaint"),
    [
        (Augment(area=(0.0, 1.0)), "data.augment.area.0=0.0: must be above 0"),
        (Augment(area=(0.5, 1.5)), "data.augment.area.1=1.5: must be .* 1 or less"),
        (Augment(area=(0.5, 0.4)), "data.augment.area is 0.5,0.4"),
        (Augment(aspect=(2.0, 1.0)), "data.augment.aspect is 2,1"),
        (Augment(flip=1.5), "data.augment.flip=1.5: must be from 0 to 1"),
    ],
)
def test_values_that_cannot_be_are_refused(augment: Augment, complaint: str):
    with pytest.raises(InputError, match=complaint):
        validate(augment, "data.augment")
        augment.check()
