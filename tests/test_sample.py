import json
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxpretrain.config.command import run
from jaxpretrain.data.text import TextData
from jaxpretrain.data.tokenizer import train_bpe
from jaxpretrain.models.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.parallel.checkpoint import Checkpoints
from jaxpretrain.sample import main
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.workdir import keep_tokenizer, write_experiment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one step of a model that knows nothing yet."""
    workdir = tmp_path_factory.mktemp("sample") / "run"
    workdir.mkdir()
    decoder = Decoder(
        vocab_size=270,
        embedding_rows=272,
        d_model=32,
        num_layers=1,
        num_heads=4,
        d_ff=32,
        dtype="float32",
        remat="none",
    )
    experiment = Experiment(model=decoder, data=TextData(seq_len=16), optim=AdamW())
    write_experiment(workdir, resolve(experiment), "")
    tokenizer = workdir / "source.json"
    tokenizer.write_text(train_bpe(["the union of the states " * 20], 270, "<|end|>"))
    keep_tokenizer(workdir, tokenizer)
    model = decoder.build(experiment.data.example_spec(), platform="cpu")
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(7, {"params": jax.jit(model.init)(jax.random.key(0))}, {})
    checkpoints.close()
    return workdir


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command: (exit code, standard output, standard error)."""

    def call(*flags: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["sample", *map(str, flags)])
        with pytest.raises(SystemExit) as exit_:
            run(main)
        return exit_.value.code, *capsys.readouterr()

    return call


def test_a_prompt_is_continued(command: Any, checkpoint: Path):
    flags = [f"--checkpoint={checkpoint}", "--prompt=the union", "--num_tokens=4"]
    code, output, error = command(*flags, "--seed=3")
    assert (code, error) == (0, "")
    assert output.startswith("the union") and len(output) > len("the union\n")
    of_step = [f"--checkpoint={checkpoint / 'checkpoints' / '7'}", *flags[1:]]
    code, document, _ = command(*of_step, "--seed=3", "--json")
    assert code == 0
    assert json.loads(document) == {
        "step": 7,
        "prompt": "the union",
        "continuation": output.removeprefix("the union")[:-1],
    }
    assert document.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_tokens=0"], "--num_tokens must be at least 1"),
        (["--temperature=-1"], "--temperature must not be negative"),
        (["--prompt="], "the prompt is empty"),
        (["--prompt=zqzqzqzqzqzqzqzqzqzq"], "has 20 tokens, the context only 16"),
        (["--checkpoint=/nowhere"], "--checkpoint=/nowhere: no such folder"),
        (["--temprature=1"], "Did you mean --temperature?"),
    ],
)
def test_bad_input_is_one_line(command: Any, checkpoint: Path, flags: list[str], message: str):
    code, output, error = command(f"--checkpoint={checkpoint}", "--prompt=the", *flags)
    assert (code, output) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_without_a_tokenizer_there_is_no_prompt(command: Any, checkpoint: Path, tmp_path: Path):
    for path in ("experiment.json", "checkpoints"):
        (tmp_path / path).symlink_to(checkpoint / path)
    code, _, error = command(f"--checkpoint={tmp_path}", "--prompt=the")
    assert code == 2 and "has no tokenizer.json" in error
