from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.reconstructions import Reconstructions, grid, reduced


@dataclass(frozen=True)
class Images:
    name: str = "noise"
    num_examples: int = 21

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images = [np.random.default_rng(i).integers(256, size=(8, 8, 3)) for i in indices]
        return {"images": np.stack(images).astype(np.uint8)}

    def target_bytes(self, batch: Any) -> None:
        return None


@pytest.fixture
def paint(make_mae: Any):
    """(devices, fields of `Reconstructions`) -> the picture."""

    def picture(num_devices: int, **fields: Any) -> np.ndarray:
        setting, params = make_mae(num_devices, eval_sets=[Images()])
        painter = Reconstructions(**fields).build(setting)
        painter.compile()
        (found,) = painter(params).images.values()
        return found

    return picture


def test_the_first_column_shows_images_from_all_over_the_set(paint: Any):
    picture = paint(1, num_images=3)
    assert picture.shape == (3 * 10 - 2, 3 * 10 - 2, 3) and picture.dtype == np.uint8
    expected = Images().batch(np.array([0, 10, 20]))["images"]
    for number, image in enumerate(expected):
        shown = picture[10 * number : 10 * number + 8, :8].astype(int)
        assert np.abs(shown - image).max() <= 1


def test_the_second_column_hides_what_the_model_does_not_see_and_the_third_paints_it(paint: Any):
    first, second, third = (paint(1, num_images=1)[:, x : x + 8] for x in (0, 10, 20))
    seen = (np.abs(second.astype(int) - first) <= 1).all(axis=2)
    assert seen.reshape(2, 4, 2, 4).all(axis=(1, 3)).sum() == 1  # a quarter of four patches
    assert (np.abs(third.astype(int) - first)[seen] <= 1).all()
    assert (third != second)[~seen].any()


def test_devices_do_not_change_thepaint(paint: Any):
    one, eight = (paint(n, num_images=3).astype(int) for n in (1, 8))
    assert np.abs(one - eight).max() <= 1


def test_large_images_are_shown_smaller_by_their_means():
    image = np.random.default_rng(0).random((600, 400, 3), np.float32)
    small = reduced(image)
    assert small.shape == (200, 133, 3)
    np.testing.assert_allclose(small[3, 5], image[9:12, 15:18].mean(axis=(0, 1)), rtol=1e-5)
    assert reduced(image[:256, :256]) is not None and reduced(image[:256, :256]).shape[0] == 256


def test_a_grid_has_white_between_images():
    black = np.zeros((2, 3, 3), np.float32)
    picture = grid([[black, black], [black, black]])
    assert picture.shape == (6, 8, 3)
    assert (picture[2:4] == 255).all() and (picture[:, 3:5] == 255).all() and picture.min() == 0


def test_what_cannot_be_shown_is_refused(make_mae: Any):
    setting, _ = make_mae()
    with pytest.raises(InputError, match="no images are held out"):
        Reconstructions().build(setting)
    with pytest.raises(InputError, match="paints no images"):
        Reconstructions().build(replace(setting, model=object()))
