import numpy as np
import pytest

from jaxpretrain.data.images.image_sources import Tfds
from jaxpretrain.data.images.images import HeldOutImages, ImageData

pytest.importorskip("skimage")
builder = pytest.importorskip("jaxpretrain.data.builders.skimage_photos")


def _open(dataset: str, split: str, size: int) -> HeldOutImages:
    return ImageData(Tfds(dataset), size=size).open_labelled(split)


def _all(examples: HeldOutImages) -> tuple[np.ndarray, np.ndarray]:
    every = np.arange(examples.num_examples)
    return examples.batch(every)["images"], examples.labels(every)


def test_crops_of_a_photograph_are_divided_by_place():
    """The last column of crops to train on ends before the 128 columns that are held out."""
    pixels = np.arange(300)[None, :, None].repeat(200, axis=0).repeat(3, axis=2)
    crops = [
        np.asarray(builder.decode(png))
        for png in builder._tiles(np.ascontiguousarray(pixels[:, : 300 - 128]).astype(np.uint8))
    ]
    assert len(crops) == 2  # 172 columns hold one crop, 200 rows two
    assert max(crop.max() for crop in crops) < 300 - 128


def test_every_photograph_has_crops_on_both_sides():
    train, validation = (_open("skimage_photos", s, 128) for s in ("train", "validation"))
    assert len(train.classes) == len(builder.PHOTOGRAPHS) == 15
    (images, labels), (held_out, held_out_labels) = _all(train), _all(validation)
    assert set(labels) == set(held_out_labels) == set(range(15))
    assert (len(images), len(held_out)) == (953, 105)
    assert not {crop.tobytes() for crop in images} & {crop.tobytes() for crop in held_out}


def test_photographs_are_whole():
    train, validation = (_open("skimage_photos:photos", s, 64) for s in ("train", "validation"))
    assert (train.num_examples, validation.num_examples) == (12, 3)
    assert train.images.read(0).startswith(b"\x89PNG")


def test_faces_are_told_from_background():
    train, validation = (_open("skimage_photos:faces", s, 25) for s in ("train", "validation"))
    assert train.classes == ("background", "face")
    (images, labels), (_, held_out_labels) = _all(train), _all(validation)
    assert np.bincount(labels).tolist() == [90, 90]
    assert np.bincount(held_out_labels).tolist() == [10, 10]
    # Faces are alike, backgrounds are not.
    spread = [images[labels == label].astype(float).std(axis=0).mean() for label in (0, 1)]
    assert spread[1] < 0.9 * spread[0]
