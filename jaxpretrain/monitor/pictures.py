"""The pictures of a run, as PNG files `pictures/<name>/<step>.png` in its folder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxpretrain.data.images.image_codec import encode_png
from jaxpretrain.storage.files import atomic_file

FOLDER = "pictures"
"""The name of the folder of pictures in the folder of a run."""


def write_pictures(workdir: Path, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes each image, uint8 [height, width, 3], under its name."""
    for name, pixels in images.items():
        path = workdir / FOLDER / name / f"{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(encode_png(pixels))
