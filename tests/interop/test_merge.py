from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.hugging_face import open_hugging_face
from jaxpretrain.interop.merge import merge
from jaxpretrain.interop.tables import whole

Folder = Callable[..., tuple[Path, dict[str, np.ndarray]]]


def test_weights_are_averaged_in_float64(hugging_face: Folder):
    folders = [hugging_face(f"of_{seed}", dtype=np.float32, seed=seed)[0] for seed in range(3)]
    sources = [open_hugging_face(folder) for folder in folders]
    soup = merge(sources)
    for name, array in soup.params.items():
        exact = np.mean([whole(s.params[name]).astype(np.float64) for s in sources], axis=0)
        np.testing.assert_array_equal(whole(array), exact.astype(np.float32))
    assert soup.origin["merged"] == [str(folder) for folder in folders]
    assert "dtype" not in soup.origin  # a mean of bfloat16 is none


def test_the_average_of_one_model_is_that_model(hugging_face: Folder):
    source = open_hugging_face(hugging_face()[0])
    for name, array in merge([source] * 3).params.items():
        np.testing.assert_array_equal(whole(array), whole(source.params[name]))


def test_models_that_differ_are_refused_by_the_field(hugging_face: Folder):
    first = open_hugging_face(hugging_face("a")[0])
    other = open_hugging_face(hugging_face("b", rope_theta=1e4)[0])
    with pytest.raises(InputError, match=r"model.rope.theta is 500000.0 there and 10000.0 in .*b"):
        merge([first, other])
