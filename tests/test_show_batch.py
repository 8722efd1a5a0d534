import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.data.text.mixture import Mixture, MixtureSource
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.masks import InstanceFilter
from jaxpretrain.show_batch import documents, main, read_rows
from jaxpretrain.train.experiment import resolve
from jaxpretrain.train.stages import make_stages

SEQ_LEN, BATCH_SIZE, NUM_STEPS = 32, 8, 40
EOS, ROW_LEN = 0, 6

CONFIG = """
from jaxpretrain.data.text.mixture import Mixture, MixtureSource
from jaxpretrain.data.text.text import TextData
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.train.experiment import Experiment, Stage, Train


def get_config(kind):
    root = {root!r}
    sources = {{"x": MixtureSource(root=root), "y": MixtureSource(root=root)}}
    data = {{
        "text": TextData(root=root, seq_len={seq_len}),
        "mixture": Mixture(sources, seq_len={seq_len}),
    }}[kind]
    stage = Stage(duration="10 steps", batch_size=4)
    return Experiment(
        model=Decoder(vocab_size=300, embedding_rows=300, d_model=32, num_layers=1, num_heads=2),
        data=data,
        optim=AdamW(),
        train=Train(duration="{num_steps} steps", batch_size={batch_size}, stages=(stage,)),
        seed=3,
    )
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 200 short documents."""
    folder = tmp_path_factory.mktemp("text")
    lines = [json.dumps({"text": f"document {n} says {n * n}. " * (n % 7 + 1)}) for n in range(200)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    spec = PrepareText(files=(str(folder / "corpus.jsonl"),), vocab_size=300)
    prepare_text(spec, folder / "tokens", workers=1)
    return folder / "tokens"


@pytest.fixture(scope="module")
def config(root: Path) -> Path:
    path = root.parent / "config.py"
    path.write_text(
        CONFIG.format(root=str(root), seq_len=SEQ_LEN, batch_size=BATCH_SIZE, num_steps=NUM_STEPS)
    )
    return path


def _json(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    main([*flags, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("step", [1, 10, 11, NUM_STEPS])
@pytest.mark.parametrize("kind", ["text", "mixture"])
def test_rows_are_what_the_step_trains_on(
    config: Path, root: Path, kind: str, step: int, capsys: pytest.CaptureFixture[str]
):
    """Also while the batch is smaller in the beginning."""
    shown = _json(capsys, f"--config={config}:{kind}", f"--step={step}", "--rows=100")
    experiment = resolve(load_config(f"{config}:{kind}"))
    stages = make_stages(experiment, jax.devices()[:1])
    data = experiment.data.open(seed=experiment.seed, limits={"tokens": 300})
    tokens = stages.read(data, step)["tokens"]
    assert range(*shown["samples"]) == stages.samples(step)
    assert len(shown["rows"]) == len(tokens) == (4 if step <= 10 else 8)
    for row, expected in zip(shown["rows"], tokens, strict=True):
        ids = np.fromfile(root / row["file"], "<u2")
        np.testing.assert_array_equal(ids[slice(*row["tokens"])], expected)
        assert row["source"] in ((None,) if kind == "text" else ("x", "y"))


@pytest.mark.parametrize(("kind", "example"), [("text", "7"), ("mixture", "y:7")])
def test_find_is_the_inverse(
    config: Path, kind: str, example: str, capsys: pytest.CaptureFixture[str]
):
    found = _json(capsys, f"--config={config}:{kind}", f"--find={example}")
    assert found["example"] == example and found["uses"]
    for use in found["uses"]:
        shown = _json(capsys, f"--config={config}:{kind}", f"--step={use['step']}", "--rows=100")
        row = shown["rows"][use["row"]]
        assert (row["sample"], row["example"]) == (use["sample"], 7)


def test_it_is_for_people(config: Path, capsys: pytest.CaptureFixture[str]):
    main([f"--config={config}:text", "--step=12", "--rows=3", "--tokens=400"])
    out = capsys.readouterr().out
    assert out.count("row ") == 3
    assert out.startswith("step 12: samples 48 to 55 of the run, 8 sequences of 32 tokens\n")
    for fact in ("row 0: sample 48, example ", "train/part-00000.npy, tokens ", "documents 0-"):
        assert fact in out
    assert "says" in out and "<|endoftext|>" in out
    main([f"--config={config}:mixture", "--step=12", "--rows=2"])
    out = capsys.readouterr().out
    assert " of x, epoch" in out and " of y, epoch" in out
    main([f"--config={config}:text", "--find=3"])
    assert "step " in capsys.readouterr().out
    main([f"--config={config}:text", "--find=3", "--config.train.duration=11 steps"])
    assert "the run does not train on 3" in capsys.readouterr().out


def test_raw_files_have_text_where_a_tokenizer_is_given(
    config: Path, root: Path, capsys: pytest.CaptureFixture[str]
):
    flags = [f"--config={config}:text", f"--config.data.root={root / 'train'}", "--step=3"]
    flags.append("--config.data.validation_split=none")
    (bare, *_) = _json(capsys, *flags)["rows"]
    assert (bare["text"], bare["documents"]) == (None, None)
    tokenizer = [f"--tokenizer={root / 'tokenizer.json'}", "--eos_id=0"]
    (row, *_) = _json(capsys, *flags, *tokenizer)["rows"]
    assert "document" in row["text"] and len(row["documents"]) > 0


def test_overrides_and_masks_arrive(config: Path, capsys: pytest.CaptureFixture[str]):
    repeats = "--config.data.instance_filter=instance_filter"
    flags = [f"--config={config}:text", "--step=2", repeats, "--config.data.seq_len=64"]
    shown = _json(capsys, *flags, "--config.data.instance_filter.max_count=3")
    assert shown["seq_len"] == 64
    assert {row["num_masked"] for row in shown["rows"]} <= {0, 64}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments --step --find is required"),
        (["--step=0"], "--step=0: the run has steps 1 to 40"),
        (["--step=41"], "--step=41: the run has steps 1 to 40"),
        (["--find=x"], "--find=x: expected INDEX, or SOURCE:INDEX"),
        (["--find=y:1"], "the data has no sources, and so no 'y'"),
        (["--find=999999"], "has examples 0 to"),
        (["--step=1", "--config.data.seq=3"], "Did you mean"),
    ],
)
def test_mistakes_are_one_line(config: Path, flags: list[str], message: str):
    with pytest.raises(InputError, match=message) as error:
        main([f"--config={config}:text", *flags])
    assert "\n" not in str(error.value)


def test_the_command_itself_needs_no_jax():
    code = "import jaxpretrain.show_batch, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files; ids count up, with an end of a document at every multiple of ten."""
    for number, size in enumerate((20, 26)):
        ids = np.arange(100 * number, 100 * number + size)
        np.where(ids % 10, ids, EOS).astype("<u2").tofile(tmp_path / f"{number}.npy")
    return tmp_path


def _show(data, samples: list[int], decode=None, eos_id: int | None = EOS) -> list:
    return read_rows(data, np.array(samples), eos_id=eos_id, decode=decode)


def test_rows_say_where_the_tokens_of_the_batch_are(folder: Path):
    data = TextData(root=str(folder), seq_len=ROW_LEN).open(seed=1, limits={"tokens": 1000})
    samples = [0, 9, 5, 3]
    batch = data.batch(np.array(samples))["tokens"]
    rows = _show(data, samples, decode=lambda ids: str(ids[:3]))
    for row, tokens, sample in zip(rows, batch, samples, strict=True):
        ids = np.fromfile(folder / row.file, "<u2")
        np.testing.assert_array_equal(ids[slice(*row.tokens)], tokens)
        assert (row.sample, row.epoch) == (sample, sample // 7)
        assert row.text == str(tokens[:3].tolist())
        assert (row.source, row.num_masked) == (None, 0)
    assert json.loads(json.dumps(asdict(rows[0])))["file"] == rows[0].file


def test_what_is_not_known_is_none(folder: Path):
    data = TextData(root=str(folder), seq_len=ROW_LEN).open(seed=1, limits={"tokens": 1000})
    (row,) = _show(data, [0], eos_id=None)
    assert (row.documents, row.text) == (None, None)


def test_documents_end_with_their_eos():
    tokens = np.array([5, 0, 6, 7, 0, 8])
    assert documents(tokens, 0) == [(0, 2), (2, 5), (5, 6)]
    assert documents(tokens[:5], 0) == [(0, 2), (2, 5)]
    assert documents(np.array([0, 0, 1]), 0) == [(0, 1), (1, 2), (2, 3)]
    assert documents(np.array([1, 2]), 0) == [(0, 2)]


def test_rows_of_a_mixture_name_their_source_and_its_epoch(folder: Path, tmp_path: Path):
    sources = {"x": MixtureSource(root=str(folder)), "y": MixtureSource(root=str(folder))}
    config = Mixture(sources, seq_len=ROW_LEN, window=2, instance_filter=InstanceFilter(1, 1, 3))
    data = config.open(seed=0, limits={"tokens": 1000})
    samples = list(range(40))
    batch = data.batch(np.array(samples))
    for row, tokens, source in zip(
        _show(data, samples), batch["tokens"], batch["source"], strict=True
    ):
        assert row.source == "xy"[source]
        np.testing.assert_array_equal(
            np.fromfile(folder / row.file, "<u2")[slice(*row.tokens)], tokens
        )
        assert row.epoch == row.sample // 2 // 7


def test_rows_count_what_is_left_out_of_the_loss(tmp_path: Path):
    np.array([1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6]).astype("<u2").tofile(tmp_path / "0.npy")
    config = TextData(root=str(tmp_path), seq_len=ROW_LEN, instance_filter=InstanceFilter(1, 1, 4))
    rows = _show(config.open(seed=0, limits={"tokens": 10}), [0, 1])
    assert {row.example: row.num_masked for row in rows} == {0: ROW_LEN, 1: 0}
