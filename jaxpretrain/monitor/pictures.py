"""Pictures of a run as PNG files: `pictures/<name>/<step>.png` in its folder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxpretrain.data.files import atomic_file

FOLDER = "pictures"


def write_pictures(workdir: Path, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes each image, uint8 [height, width, 3], under its name."""
    from PIL import Image  # whoever trains on images has it

    for name, pixels in images.items():
        path = workdir / FOLDER / name / f"{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            Image.fromarray(pixels).save(file, format="PNG")
