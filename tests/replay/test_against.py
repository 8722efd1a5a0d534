import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.olmo.rotary import Rope
from jaxpretrain.replay.__main__ import main
from jaxpretrain.replay.against import compare_with
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.run import train_experiment
from tests.replay.conftest import write_shards


def trained(config: Experiment, workdir: Path, num_steps: int = 6) -> Path:
    """The folder of a run that is asked to stop early."""
    train = replace(config.train, duration=f"{num_steps} steps", microbatch_size=None)
    schedule = replace(config.optim.schedule, horizon="16 steps")
    optim = replace(config.optim, schedule=schedule)
    assert train_experiment(resolve(replace(config, train=train, optim=optim)), workdir)
    return workdir


@pytest.fixture(scope="module")
def first(config: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(config, tmp_path_factory.mktemp("first") / "run")


def test_runs_that_are_equal_do_not_part(first: Path):
    assert compare_with(first, first) == (None, ["the same in all 6 steps that both have recorded"])


def test_other_data_is_named_by_row_and_sample(config: Experiment, first: Path, tmp_path: Path):
    root = write_shards(tmp_path / "data")
    path = root / "train" / "shard0.npy"
    np.fromfile(path, "<u2")[::-1].tofile(path)
    other = replace(config, data=replace(config.data, root=str(root)))
    step, lines = compare_with(first, trained(other, tmp_path / "run"))
    assert step == 1
    assert lines[0].startswith("they part at step 1, at once: train/loss differs by ")
    assert "rounding does not explain that" in lines[0]
    assert lines[-2:][0] == "computed here from the initial state, step 1 is the first that differs"
    assert lines[-1].startswith("other data: ") and "rows differ in tokens, first row" in lines[-1]


def test_another_update_and_another_model_are_told_apart(
    config: Experiment, first: Path, tmp_path: Path
):
    other = replace(config, optim=replace(config.optim, weight_decay=0.5))
    step, lines = compare_with(first, trained(other, tmp_path / "optimizer"))
    assert step == 2
    assert lines[0].startswith("optim.weight_decay: 0.1 in ")
    assert "computed here from the initial state, step 1 is the first that differs" in lines
    assert any(line.startswith("checkpoint 4 is the first that differs: ") for line in lines)
    assert lines[-1].startswith("batches and gradients are the same: the update differs")

    other = replace(config, model=replace(config.model, rope=Rope(theta=1000.0)))
    step, lines = compare_with(first, trained(other, tmp_path / "model"))
    assert step == 1
    assert lines[-2].startswith("forward: the first layer that differs is ")
    assert "/blocks, layer 0, by " in lines[-2]
    assert lines[-1].startswith("microbatch 1 of 1 is the first whose gradient differs, more than")


def test_runs_that_are_the_same_here_part_by_where_they_ran(first: Path, tmp_path: Path):
    other = shutil.copytree(first, tmp_path / "run")
    path = other / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] >= 5 and "train/loss" in line:
            line["train/loss"] *= 1 + 1e-6
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    step, said = compare_with(first, other)
    assert step == 5 and "rounding could explain that" in said[0]
    assert "after the same until step 4" in said[0]
    assert said[1] == "computed here from checkpoint 4, both give the same steps to 5"
    assert said[2].startswith(f"{first}, as recorded and as computed here: identical")
    assert said[3].startswith(f"{other}, as recorded and as computed here: equal to rounding")
    assert said[4].startswith("so they part by where they ran")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_losses_of_another_program(first: Path, tmp_path: Path, ending: str, run_command: Any):
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    known = [(x["step"], x["train/loss"]) for x in lines if "train/loss" in x]
    losses = [(step, loss * (1.1 if step == 3 else 1 + 1e-6)) for step, loss in known]
    folder = tmp_path / "other"
    folder.mkdir()
    if ending == "csv":
        rows = "".join(f"{step},{loss!r}\n" for step, loss in losses)
        (folder / "wandb.csv").write_text("_step,train/CrossEntropyLoss\n" + rows)
    else:
        rows = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in losses]
        (folder / "log.jsonl").write_text("".join(rows))
    step, said = compare_with(first, folder)
    assert step == 3 and "they part at step 3, after the same until step 2" in said[0]
    assert said[1].startswith("compare what changes after step 2: data, schedule")
    output = f"--output={tmp_path / 'kept'}"
    code, told, _ = run_command(main, f"--workdir={first}", f"--against={folder}", output)
    assert code == 0 and told.startswith("they part at step 3") and "0 steps" not in told


def test_what_cannot_be_compared_is_one_line(first: Path, tmp_path: Path):
    with pytest.raises(InputError, match="holds no run, and 0 files of losses"):
        compare_with(first, tmp_path)
    for text, line in (
        ("a,b\n1,2\n", "its columns are a, b; expected step or _step"),
        ("step,loss\n1,x\n", "row 1: step and loss must be numbers"),
        ("step,loss\n99,1.0\n", "has no losses of steps that"),
    ):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(InputError, match=line):
            compare_with(first, tmp_path / "a.csv")
    with pytest.raises(InputError, match="no such file or folder"):
        compare_with(first, tmp_path / "b.csv")
