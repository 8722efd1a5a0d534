import csv
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.tokenizer import train_bpe
from jaxpretrain.evaluate import main
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.workdir import keep_tokenizer, write_experiment

QUESTIONS = [
    {"context": "the union of", "continuations": [" the", " states"], "answer": 1},
    {"context": "states", "continuations": [" of", " the union"], "answer": 0},
    {"context": "zq" * 20, "continuations": [" the", " union", " of"], "answer": 2},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with three steps."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
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
    checkpoints = Checkpoints(workdir / "checkpoints", keep_last=None)
    for step in (2, 4, 6):
        checkpoints.save(step, {"params": jax.jit(model.init)(jax.random.key(step))}, {})
    checkpoints.wait()
    return workdir


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("task") / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return file


@pytest.fixture
def command(run_command: Any) -> Any:
    return partial(run_command, main)


def test_tasks_and_perplexity_come_as_table_json_csv_and_predictions(
    command: Any, checkpoint: Path, task: Path, tmp_path: Path
):
    np.arange(100).astype("<u2").tofile(tmp_path / "tokens.npy")
    code, output, error = command(
        f"--checkpoint={checkpoint}",
        f"--tasks=mine={task}",
        f"--perplexity=held={tmp_path / 'tokens.npy'}",
        f"--output={tmp_path / 'out.json'}",
        f"--predictions={tmp_path / 'items.jsonl'}",
    )
    assert (code, error) == (0, "")
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["step"] == 6
    metrics = document["tasks"]["mine"]
    assert metrics["num_items"] == 3 and metrics["num_truncated"] == 3
    assert metrics["random"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    held = document["perplexity"]["held"]
    assert {"loss", "perplexity", "bits_per_byte", "num_tokens"} <= held.keys()
    assert held["num_tokens"] == 100 - 7

    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    values = {(row["kind"], row["name"], row["metric"]): row["value"] for row in rows}
    assert float(values["tasks", "mine", "acc"]) == metrics["acc"]
    assert float(values["perplexity", "held", "loss"]) == held["loss"]

    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    right = [item["chosen"]["acc"] == item["answer"] for item in items]
    assert np.mean(right) == metrics["acc"]
    assert [len(item["log_likelihoods"]) for item in items] == [2, 2, 3]
    for text in ("step 6", "mine", f"{metrics['acc']:.4f}", "held", "lost their start", "tokens/s"):
        assert text in output


def test_several_steps_are_a_curve(command: Any, checkpoint: Path, task: Path, tmp_path: Path):
    flags = (f"--tasks={task}", "--json")
    code, output, _ = command(f"--checkpoint={checkpoint}", *flags, "--steps=3:")
    assert code == 0 and output.count("\n") == 1
    document = json.loads(output)
    assert [point["step"] for point in document["steps"]] == [4, 6]
    for point in document["steps"]:
        folder = checkpoint / "checkpoints" / str(point["step"])
        _, output, _ = command(f"--checkpoint={folder}", *flags)
        assert json.loads(output)["tasks"] == point["tasks"]
    assert document["tasks"] == document["steps"][-1]["tasks"]
    assert list(document["tasks"]) == [str(task)]


def test_a_limit_takes_the_first_items(command: Any, checkpoint: Path, task: Path):
    flags = [f"--checkpoint={checkpoint}", f"--tasks={task}", "--limit=2", "--json"]
    _, output, _ = command(*flags)
    metrics = json.loads(output)["tasks"][str(task)]
    assert (metrics["num_items"], metrics["random"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=TASK", "--limit=0"], "--limit=0: must be positive"),
        (["--tasks=TASK", "--output=/nowhere/x.json"], "there is no folder /nowhere"),
        (["--tasks=TASK", "--num_fewshot=2"], "--num_fewshot is for --harness, which is not given"),
        (["--tasks=TASK", "--pictures=x"], "--pictures is for what the run itself evaluates"),
        (["--perplexity=x.npy", "--predictions=y.jsonl"], "--predictions is for --tasks"),
        (["--harness=x", "--num_fewshot=-1"], "--num_fewshot=-1: must not be negative"),
        (["--perplexity=x.npy"], "--perplexity=x.npy: write NAME=FILE.npy"),
        (["--perplexity=a=x.npy", "--perplexity=a=y.npy"], "there is a set a already"),
        (["--perplexity=a=x.npy"], "x.npy"),
        (["--tasks=TASK", "--steps=3"], "has checkpoints of the steps [2, 4, 6]"),
        (["--tasks=TASK", "--steps=x"], "--steps=x: write all, FIRST:LAST, or steps by commas"),
        (["--tasks=TASK", "--tokenizer=nowhere.json"], "nowhere.json: no such tokenizer file"),
        (["--tasks=TASK", "--checkpoint=/nowhere"], "--checkpoint=/nowhere: no such folder"),
        (
            ["--tasks=TASK", "--checkpoint=CHECKPOINT/checkpoints/3"],
            "checkpoints/3: no such folder",
        ),
        (["--taks=TASK"], "Did you mean --tasks?"),
    ],
)
def test_bad_input_is_one_line(
    command: Any, checkpoint: Path, task: Path, flags: list[str], message: str
):
    flags = [flag.replace("TASK", str(task)) for flag in flags]
    flags = [flag.replace("CHECKPOINT", str(checkpoint)) for flag in flags]
    code, output, error = command(f"--checkpoint={checkpoint}", *flags)
    assert (code, output) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_without_lm_eval_the_harness_is_refused(
    command: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("lm_eval", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "jaxpretrain.evals.harness_model", raising=False)
    code, _, error = command(f"--checkpoint={checkpoint}", "--harness=lambada_openai")
    assert code == 2 and error.count("\n") == 1
    assert "need the package lm_eval" in error and "pip install 'lm-eval>=" in error


def test_without_a_tokenizer_there_are_no_tasks(
    command: Any, checkpoint: Path, task: Path, tmp_path: Path
):
    for path in ("experiment.json", "checkpoints"):
        (tmp_path / path).symlink_to(checkpoint / path)
    code, _, error = command(f"--checkpoint={tmp_path}", f"--tasks={task}")
    assert code == 2 and "has no tokenizer.json to read the tasks with" in error
    tokenizer = f"--tokenizer={checkpoint / 'tokenizer.json'}"
    assert command(f"--checkpoint={tmp_path}", f"--tasks={task}", tokenizer)[0] == 0
