"""Photographs, and faces, as a TFDS dataset of three configs; nothing is downloaded.

Read from the package `scikit-image` of the extra `vision`.

- `crops` (the default): 128 x 128 pixels out of 15 photographs, 64 apart, labelled by photograph.
  The right-most 128 columns of each are for validation, and no crop reaches across that border.
  The black corners around the picture of a retina are left out.
- `photos`: the photographs as they are, the last three for validation.
- `faces`: 25 x 25 pixels, grey: 100 faces (Labeled Faces in the Wild) and 100 pieces of background,
  labelled; every tenth is for validation.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxpretrain.data.builders import Examples
from jaxpretrain.data.images.image_codec import decode, encode_png
from jaxpretrain.data.package_files import package_file

PHOTOGRAPHS = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "cell.png": "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "moon.png": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}
FACES = "9560ec2f5edfac01973f63a8a99d00053fecd11e21877e18038fbe500f8e872c"
FACE_SIDE = 25
CROP_SIDE, CROP_STRIDE = 128, 64
FLAT = 2.0
"""The standard deviation of pixel values below which a crop shows nothing."""
NUM_HELD_OUT_PHOTOS = 3

Pictures = list[tuple[bytes, str]]
"""Encoded pictures with their labels."""


class SkimagePhotos(tfds.core.GeneratorBasedBuilder):
    """Photographs and faces with their labels."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The photographs and faces of scikit-image 0.26."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="crops", description="Crops of photographs."),
        tfds.core.BuilderConfig(name="photos", description="Whole photographs."),
        tfds.core.BuilderConfig(name="faces", description="Faces and pieces of background."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        photographs = [Path(name).stem for name in PHOTOGRAPHS]
        config = self.builder_config.name  # pyright: ignore[reportOptionalMemberAccess]
        shape, names = {
            "crops": ((CROP_SIDE, CROP_SIDE, 3), photographs),
            "photos": ((None, None, 3), photographs),
            "faces": ((FACE_SIDE, FACE_SIDE, 1), ["background", "face"]),
        }[config]
        return self.dataset_info_from_configs(
            description=__doc__,
            homepage="https://scikit-image.org",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        config = self.builder_config.name  # pyright: ignore[reportOptionalMemberAccess]
        train, validation = {"crops": _crops, "photos": _photos, "faces": _faces}[config]()
        return {
            "train": self._generate_examples(train),
            "validation": self._generate_examples(validation),
        }

    def _generate_examples(self, pictures: Pictures) -> Examples:
        for number, (content, label) in enumerate(pictures):
            yield number, {"image": io.BytesIO(content), "label": label}


def _crops() -> tuple[Pictures, Pictures]:
    train, validation = [], []
    for name, content in _files():
        pixels = np.asarray(decode(content))
        border = pixels.shape[1] - CROP_SIDE
        train += [(crop, Path(name).stem) for crop in _tiles(pixels[:, :border])]
        validation += [(crop, Path(name).stem) for crop in _tiles(pixels[:, border:])]
    return train, validation


def _tiles(pixels: np.ndarray) -> Iterator[bytes]:
    """Yields all crops that fit and are not of one tone, row by row, as PNG."""
    height, width, _ = pixels.shape
    for top in range(0, height - CROP_SIDE + 1, CROP_STRIDE):
        for left in range(0, width - CROP_SIDE + 1, CROP_STRIDE):
            crop = pixels[top : top + CROP_SIDE, left : left + CROP_SIDE]
            if crop.std() > FLAT:
                yield encode_png(np.ascontiguousarray(crop))


def _photos() -> tuple[Pictures, Pictures]:
    photos = [(content, Path(name).stem) for name, content in _files()]
    return photos[:-NUM_HELD_OUT_PHOTOS], photos[-NUM_HELD_OUT_PHOTOS:]


def _faces() -> tuple[Pictures, Pictures]:
    pictures = np.load(io.BytesIO(package_file("skimage/data/lfw_subset.npy", FACES)))
    labels = ["face"] * 100 + ["background"] * 100  # [200, 25, 25], from 0 to 1
    pngs = map(encode_png, np.rint(255 * pictures).astype(np.uint8))
    examples = list(zip(pngs, labels, strict=True))
    return [example for i, example in enumerate(examples) if i % 10 != 9], examples[9::10]


def _files() -> Iterator[tuple[str, bytes]]:
    for name, sha256 in PHOTOGRAPHS.items():
        yield name, package_file(f"skimage/data/{name}", sha256)
