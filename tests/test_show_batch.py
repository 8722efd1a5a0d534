import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.show_batch import main
from jaxpretrain.train.experiment import resolve
from jaxpretrain.train.stages import make_stages

SEQ_LEN, BATCH_SIZE, NUM_STEPS = 32, 8, 40

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
