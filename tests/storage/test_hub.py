"""The hub's own client against a hub on loopback, and without one, in processes of their own."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.tokenizer import train_bpe
from jaxpretrain.storage.hub import is_hub_name, told_of
from tests.hub_server import hub_server

ROOT = Path(__file__).parents[2]


def _prepare(folder: Path, hub: str, *flags: str, **environment: str):
    own = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0"}
    variables = {**os.environ, **own, **environment}
    command = [sys.executable, "-m", "jaxpretrain.prepare", f"--output={folder / 'out'}", "--json"]
    command += ["--workers=1", "--validation_fraction=0", "--vocab_size=300", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)


def test_files_and_a_tokenizer_of_the_hub(tmp_path: Path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = io.BytesIO()
    parquet.write_table(arrow.table({"text": [f"document {n}" for n in range(50)]}), rows)
    files = {
        "data/a.parquet": rows.getvalue(),
        "data/more/b.jsonl.gz": gzip.compress(b'{"text": "a line"}\n'),
        "README.md": b"no data",
        "tokenizer.json": train_bpe(["document"], 280, "<end>").encode(),
    }
    with hub_server("team/name", files) as hub:
        flags = ["--files=hf://datasets/team/name/data", "--tokenizer=team/name"]
        refused = _prepare(tmp_path, hub.url, *flags, "--eos_token=<end>")
        assert refused.returncode == 2
        assert "team/name: no such tokenizer file here; --download asks the hub" in refused.stderr
        assert not [path for path in hub.asked if "tokenizer" in path]
        done = _prepare(tmp_path, hub.url, *flags, "--eos_token=<end>", "--download")
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert summary["splits"]["train"]["num_documents"] == 51
        given = Tokenizer.from_str(files["tokenizer.json"].decode())
        assert summary["vocab_size"] == given.get_vocab_size()
        other = _prepare(tmp_path, hub.url, "--files=README.md", "--tokenizer=a/b", "--download")
        assert other.returncode == 2
        assert "hf://a/b/tokenizer.json: there is no such file on the hub, or it" in other.stderr
        absent = _prepare(tmp_path, hub.url, "--files=hf://datasets/team/name/**/*.txt")
        assert absent.returncode == 2
        assert "**/*.txt: no such file of a known kind" in absent.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--files=hf://datasets/team/name/data/*.parquet"],
        ["--files=README.md", "--tokenizer=team/name", "--download"],
    ],
)
def test_without_network_there_is_one_line(tmp_path: Path, flags: list[str]):
    done = _prepare(tmp_path, "http://127.0.0.1:1", *flags)  # where nobody listens
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: hf://") and done.stderr.count("\n") == 1
    assert "the hub cannot be read ([Errno 111] Connection refused)" in done.stderr


def test_names_and_errors():
    assert is_hub_name("allenai/OLMo-2-0425-1B")
    assert not is_hub_name("books/tokenizer.json") and not is_hub_name("a/b/c")
    refused = pytest.raises(InputError, match=r"hf://datasets/a/b: the hub cannot be read \(slow")
    with refused, told_of("hf://datasets/a/b"):
        raise TimeoutError("slow\nvery")
    with pytest.raises(TimeoutError), told_of("gs://bucket/a"):
        raise TimeoutError("slow")
