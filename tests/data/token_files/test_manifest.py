import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.manifest import MANIFEST, load_manifest, save_manifest


def test_a_saved_manifest_is_loaded_as_it_was(prepared: Path, tmp_path: Path):
    manifest = load_manifest(prepared)
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert (tmp_path / MANIFEST).read_bytes() == (prepared / MANIFEST).read_bytes()


def _other_version(raw: dict[str, Any]) -> None:
    raw["format_version"] = 2


def _no_vocabulary(raw: dict[str, Any]) -> None:
    del raw["vocab_size"]


def _unknown_field(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["colour"] = "red"


def _odd_dtype(raw: dict[str, Any]) -> None:
    raw["dtype"] = "int8"


def _eos_outside(raw: dict[str, Any]) -> None:
    raw["eos_id"] = raw["vocab_size"]


def _odd_size(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["files"][0]["num_bytes"] += 1


def _odd_sum(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["num_tokens"] += 1


def _null_size(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["files"][0]["num_bytes"] = None


def _object_as_name(raw: dict[str, Any]) -> None:
    raw["splits"]["train"]["files"][0]["name"] = {"a": 1}


def _list_of_splits(raw: dict[str, Any]) -> None:
    raw["splits"] = [raw["splits"]]


def _size_in_text(raw: dict[str, Any]) -> None:
    raw["vocab_size"] = str(raw["vocab_size"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_other_version, "format_version is 2"),
        (_no_vocabulary, "vocab_size"),
        (_unknown_field, "colour"),
        (_odd_dtype, "int8"),
        (_eos_outside, "outside the vocabulary"),
        (_odd_size, "part-00000.npy cannot hold"),
        (_odd_sum, "do not add up"),
        (_null_size, "splits.train.files.0.num_bytes: expected a whole number, got None"),
        (_object_as_name, "splits.train.files.0.name: expected a text"),
        (_list_of_splits, "splits: expected an object"),
        (_size_in_text, "vocab_size: expected a whole number"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(
    prepared: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], complaint: str
):
    raw = json.loads((prepared / MANIFEST).read_text())
    change(raw)
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(InputError, match=complaint) as error:
        load_manifest(tmp_path)
    assert str(tmp_path / MANIFEST) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=MANIFEST):
        load_manifest(tmp_path)


def test_a_missing_manifest_names_the_command(prepared: Path, tmp_path: Path):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"jaxpretrain\.prepare"):
        load_manifest(copy)
