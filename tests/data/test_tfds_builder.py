import pytest

from jaxpretrain.data.tfds_builder import TfdsName


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (TfdsName("cifar10"), "cifar10"),
        (TfdsName("c4", "en"), "c4/en"),
        (TfdsName("cifar10", version="3.0.2"), "cifar10:3.0.2"),
        (TfdsName("c4", "en", "3.1.0"), "c4/en:3.1.0"),
    ],
)
def test_names_are_written_as_tfds_does(name: TfdsName, text: str):
    assert str(name) == text
