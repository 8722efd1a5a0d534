"""What a text names: a path of this machine, or one in a bucket."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpretrain.config import errors
from jaxpretrain.config.errors import InputError
from jaxpretrain.storage import paths
from jaxpretrain.storage.paths import (
    absolute,
    as_path,
    is_remote,
    kvstore,
    list_files,
    names_in,
    parse,
)


def test_a_local_path_stays_one_of_pathlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse("~/runs/a") == Path("/home/ada/runs/a")
    assert type(parse("runs/a")) is type(Path())
    assert not is_remote(parse("runs/a"))
    assert absolute(parse("runs/a")) == Path.cwd() / "runs" / "a"
    assert kvstore(parse("/runs/a")) == {"driver": "file", "path": "/runs/a/"}


def test_a_url_has_the_methods_of_a_path(bucket) -> None:
    path = parse("gs://bucket/runs/a")
    assert is_remote(path) and absolute(path) is path
    assert str(path / "b.json") == "gs://bucket/runs/a/b.json"
    assert kvstore(path) == {"driver": "gcs", "bucket": "bucket", "path": "runs/a/"}
    assert kvstore(bucket) == {"driver": "gcs", "bucket": "bucket", "path": ""}
    (path / "b.json").write_text("{}")
    assert path.is_dir() and (path / "b.json").read_text() == "{}"
    assert [*path.glob("*")] == [path / "b.json"]


def test_files_are_listed_with_their_sizes_wherever_they_lie(bucket, tmp_path) -> None:
    for root in (bucket / "a", tmp_path):
        (root / "x").mkdir(parents=True, exist_ok=True)
        (root / "x" / "1.png").write_bytes(b"123")
        (root / "y.txt").write_bytes(b"1")
        found = {
            str(path.relative_to(root)): about["size"] for path, about in list_files(root).items()
        }
        assert found == {"x/1.png": 3, "y.txt": 1}
    assert [*list_files(bucket / "a" / "y.txt")] == [bucket / "a" / "y.txt"]
    assert list_files(bucket / "none") == {}


def test_the_names_in_a_folder_are_of_one_level_wherever_it_lies(bucket, tmp_path) -> None:
    for root in (bucket / "a", tmp_path):
        (root / "x" / "deeper").mkdir(parents=True, exist_ok=True)
        (root / "x" / "deeper" / "1.png").write_bytes(b"123")
        (root / "y.txt").write_bytes(b"1")
        assert names_in(root) == ["x", "y.txt"]
        assert names_in(root / "none") == []
    assert names_in(tmp_path / "y.txt") == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("s3://bucket/a", "there is no store s3:// here; write a folder or gs://"),
        ("http://host/a", "there is no store http:// here; write a folder or gs://"),
        ("gs:/bucket/a", "is neither a path nor a URL; write gs://bucket/a"),
        ("gs://", "names no bucket; write gs://my-bucket/FOLDER"),
        ("gs:///run", "names no bucket; write gs://my-bucket/FOLDER"),
        ("gs:bucket/a", "is neither a path nor a URL; write gs://bucket/a"),
        ("gs://bucket/a/../b", "a bucket has no '..'; write the place without it"),
        ("gs://Bad_/run", "names no bucket; write gs://my-bucket/FOLDER"),
        ("", "is empty: write a path"),
    ],
)
def test_what_names_no_place_is_one_line(bucket, text: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text, "--workdir")
    assert str(error.value) == f"--workdir={text}: {line}"


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    store = paths._STORES["gs"]._replace(package="not_there")
    monkeypatch.setitem(paths._STORES, "gs", store)
    monkeypatch.setattr(errors, "extras", lambda: {"gcs": ["gcsfs>=1"]})
    with pytest.raises(InputError) as error:
        parse("gs://bucket/run", "--workdir")
    assert str(error.value) == (
        "--workdir=gs://bucket/run: gs:// needs the package not_there, of the extra gcs: "
        "pip install 'gcsfs>=1'"
    )


def test_a_flag_takes_either_and_says_what_is_wrong(bucket) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--workdir", type=as_path)
    assert parser.parse_args(["--workdir=gs://bucket/a"]).workdir == bucket / "a"
    with pytest.raises(argparse.ArgumentError, match="there is no store s3:// here"):
        parser.parse_args(["--workdir=s3://bucket/a"])


def test_nothing_of_buckets_is_imported_before_a_url_is_given() -> None:
    code = "import sys, jaxpretrain.main as m; from jaxpretrain.storage.paths import parse; "
    code += "parse('runs/a'); print({'etils', 'fsspec', 'gcsfs', 'jax'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_patience_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAXPRETRAIN_STORAGE_SECONDS", raising=False)
    assert paths.patience() == 300
    monkeypatch.setenv("JAXPRETRAIN_STORAGE_SECONDS", "12")
    assert paths.patience() == 12
    for text in ("abc", "nan", "inf", "-1"):
        monkeypatch.setenv("JAXPRETRAIN_STORAGE_SECONDS", text)
        with pytest.raises(InputError, match=f"^JAXPRETRAIN_STORAGE_SECONDS={text}: must be a"):
            parse("runs/a")
