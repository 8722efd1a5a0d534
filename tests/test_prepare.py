import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.manifest import load_manifest
from jaxpretrain.prepare import main


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"body": f"document {n} says {n * n}"}) for n in range(200)]
    path.write_text("\n".join(lines))
    return path


def _flags(corpus: Path, *more: str) -> list[str]:
    flags = [f"--files={corpus}", "--text_key=body", "--vocab_size=300", "--workers=1"]
    return [f"--output={corpus.parent / 'out'}", *flags, *more]


def test_json_is_one_document_of_what_was_made(corpus: Path, capsys: pytest.CaptureFixture[str]):
    main(_flags(corpus, "--json"))
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    manifest = load_manifest(Path(summary["output"]))
    assert summary["vocab_size"] == manifest.vocab_size == 300
    assert summary["seconds"] > 0 and summary["tokens_per_second"] > 0
    assert set(summary["splits"]) == {"train", "validation"}
    for name, split in summary["splits"].items():
        for count in ("num_documents", "num_tokens", "num_bytes"):
            assert split[count] == getattr(manifest.splits[name], count)
    assert captured.err == "training the tokenizer\n"  # without a terminal there is no bar


def test_files_with_commas_and_several_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("a,b.txt", "c.txt", "d.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    monkeypatch.chdir(tmp_path)
    common = ["--output=out", "--validation_fraction=0", "--vocab_size=300", "--workers=1"]
    main([*common, "--files=c.txt,a,b.txt", "--files=d.txt", "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["splits"]["train"]["num_documents"] == 3
    files = load_manifest(tmp_path / "out").created_from["files"]
    assert [name for name, *_ in files] == ["c.txt", "a,b.txt", "d.txt"]


def test_what_is_odd_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A small vocabulary, a text that spells the EOS, files of other kinds."""
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "stories.txt").write_text("one<|endoftext|>\ntwo<|endoftext|>\nthree")
    flags = [f"--output={tmp_path / 'out'}", f"--files={tmp_path}", "--validation_fraction=0"]
    main([*flags, "--vocab_size=4096", "--workers=1"])
    vocab_size = load_manifest(tmp_path / "out").vocab_size
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}: skipped 1 .csv",
        "training the tokenizer",
        f"the tokenizer has {vocab_size} ids, not the 4,096 of --vocab_size: the text has no more"
        " pieces to merge",
        "warning: 1 of 3 documents spell '<|endoftext|>', which is learnt as text and ends no"
        " document; if it stands between documents, divide them there:"
        " --document_separator='<|endoftext|>'",
    ]


def test_the_summary_is_for_people(corpus: Path, capsys: pytest.CaptureFixture[str]):
    main(_flags(corpus, "--name=mine"))
    out = capsys.readouterr().out
    for fact in ("mine, vocabulary 300", "train", "validation", "bytes/token", "tokens/s"):
        assert fact in out


def test_every_flag_arrives(corpus: Path, prepared_tokenizer: Path):
    main(
        _flags(
            corpus,
            f"--tokenizer={prepared_tokenizer}",
            "--eos_token=<end>",
            "--validation_fraction=0",
            "--part_tokens=500",
            "--name=mine",
        )
    )
    manifest = load_manifest(corpus.parent / "out")
    assert manifest.name == "mine"
    assert list(manifest.splits) == ["train"]
    assert len(manifest.splits["train"].files) > 1
    assert manifest.created_from["eos_token"] == "<end>"


@pytest.fixture
def prepared_tokenizer(tmp_path: Path) -> Path:
    from jaxpretrain.data.token_files.tokenizer import train_bpe

    path = tmp_path / "given.json"
    path.write_text(train_bpe(["document says"], 260, "<end>"))
    return path


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "--output"),
        (["--output=x"], "neither a dataset nor files is given"),
        (["--output=x", "--datset=sotu_text"], "--dataset"),
        (["--output=x", "--files=absent.txt"], "absent.txt: no such file"),
        (["--output=x", "--files=a.txt", "--workers=two"], "--workers"),
        (["--output=x", "--files=a.txt", "--text_key=a", "--template={b}"], "give one"),
        (["--output=x", "--files=a.txt", "--where=score"], "--where=score: write COLUMN>=NUMBER"),
        (["--output=x", "--dataset=sotu"], "Did you mean 'sotu_text'"),
    ],
)
def test_bad_flags_are_input_errors(
    flags: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=complaint):
        main(flags)
    assert not list(tmp_path.iterdir())


def test_as_a_command_with_processes(corpus: Path):
    """Exit codes, and standard output that holds the JSON alone though processes take part."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "jaxpretrain.prepare", *_flags(corpus, "--json")]
    command += ["--workers=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "text"
    refused = subprocess.run(
        [*command, "--vocab_size=310"], capture_output=True, text=True, cwd=root
    )
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1


def test_a_killed_command_leaves_no_process_and_can_be_run_again(tmp_path: Path):
    """Killed in the middle of its work, so that nothing of it can clean up."""
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"body": f"document {n} " + "and more " * 500}) for n in range(1000)]
    corpus.write_text("\n".join(lines))
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "jaxpretrain.prepare", *_flags(corpus, "--json")]
    command += ["--workers=2", "--part_tokens=10000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    ) as first:
        while first.poll() is None and not list(tmp_path.glob("out/train/part-*.json")):
            time.sleep(0.01)
        first.kill()
        # Its processes hold these pipes too: they close when the last of them has ended.
        first.communicate(timeout=30)
    assert first.returncode != 0
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert (
        sum(split["num_documents"] for split in json.loads(done.stdout)["splits"].values()) == 1000
    )
