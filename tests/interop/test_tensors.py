import json
import os
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.tensors import (
    INDEX,
    SINGLE,
    from_torch,
    read_safetensors,
    read_safetensors_folder,
    read_torch,
    write_safetensors_folder,
)

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([1.5, -0.0, np.nan], jnp.bfloat16),
    "c": np.array(3.0, np.float32),
    "d": np.zeros((2, 5), np.float16),
}


def _write(folder: Path, shard_bytes: int) -> None:
    folder.mkdir()
    specs = {name: (array.shape, array.dtype) for name, array in ARRAYS.items()}
    write_safetensors_folder(folder, specs, ARRAYS.items(), shard_bytes)


@pytest.mark.parametrize(
    ("shard_bytes", "files"),
    [
        (1000, {SINGLE: "abcd"}),
        (54, {"model-00001-of-00002.safetensors": "ab", "model-00002-of-00002.safetensors": "cd"}),
        (1, {f"model-0000{i + 1}-of-00004.safetensors": "abcd"[i] for i in range(4)}),
    ],
)
def test_what_is_written_is_read_bit_for_bit(
    tmp_path: Path, shard_bytes: int, files: dict[str, str]
):
    _write(tmp_path / "out", shard_bytes)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == set(files) | ({INDEX} if len(files) > 1 else set())
    for name, held in files.items():
        assert set(load_file(tmp_path / "out" / name)) == set(held)  # as the package reads it
    tensors = read_safetensors_folder(tmp_path / "out")
    for name, array in ARRAYS.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype.name)
        assert tensors[name].read(slice(None)).tobytes() == array.tobytes()


def test_only_some_rows_are_read(tmp_path: Path):
    _write(tmp_path / "out", 1000)
    part = read_safetensors(tmp_path / "out" / SINGLE)["a"].read(slice(1, 3))
    np.testing.assert_array_equal(part, ARRAYS["a"][1:3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[:-1], "is damaged or not a safetensors file"),
        (lambda whole: whole[:30], "is damaged or not a safetensors file"),
        (lambda whole: b"", "is damaged or not a safetensors file"),
        (lambda whole: b"\xff" * len(whole), "is damaged or not a safetensors file"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: Any, message: str):
    _write(tmp_path / "out", 1000)
    path = tmp_path / "out" / SINGLE
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        read_safetensors_folder(tmp_path / "out")


def _index(folder: Path, document: object) -> None:
    save_file({"a": ARRAYS["a"]}, folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is not a JSON object"),
        ({}, "weight_map: is missing"),
        ({"weight_map": {"a": 1}}, "weight_map.a: expected a text, got 1"),
        (
            {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}},
            "two.safetensors is not",
        ),
        ({"weight_map": {"a": "../one.safetensors"}}, "'../one.safetensors', which is not a file"),
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd', which is not a file of that folder"),
        ({"weight_map": dict.fromkeys("abc", "one.safetensors")}, "holds b and 1 more"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, document: object, message: str):
    _index(tmp_path, document)
    with pytest.raises(InputError, match=message):
        read_safetensors_folder(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="has neither model.safetensors nor"):
        read_safetensors_folder(tmp_path)


class _Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_torch_files_give_tensors_and_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(6.0).reshape(3, 2), "b": torch.ones(2).bfloat16()}, path)
    content = read_torch(path)
    np.testing.assert_array_equal(from_torch(content["a"]).read(slice(1, 3)), [[2, 3], [4, 5]])
    b = from_torch(content["b"])
    assert b.dtype == "bfloat16" and b.read(slice(None)).dtype == jnp.bfloat16
    torch.save({"a": _Executes()}, path)
    with pytest.raises(InputError, match="holds more than tensors, so it was not read"):
        read_torch(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
    for damage in (b"", b"junk" * 20, path.read_bytes()[:200]):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="x.pt"):
            read_torch(path)
    with pytest.raises(InputError, match="no such file"):
        read_torch(tmp_path / "y.pt")


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install 'torch>="):
        read_torch(tmp_path / "x.pt")
