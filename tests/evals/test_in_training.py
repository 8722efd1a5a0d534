"""Tasks while a run trains."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.data.text.text import TextData
from jaxpretrain.evals.config import Eval
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.monitor.config import Monitor
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.train.experiment import Checkpoint, Experiment, Train
from jaxpretrain.train.resolved import resolve
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.trained import load_trained


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    for seed, split in enumerate(("train", "validation")):
        (tmp_path / split).mkdir()
        tokens = np.random.default_rng(seed).integers(290, size=2000).astype("<u2")
        tokens.tofile(tmp_path / split / "part.npy")
    return Experiment(
        model=Decoder(
            vocab_size=290,
            embedding_rows=304,
            d_model=32,
            num_layers=1,
            num_heads=4,
            d_ff=32,
            dtype="float32",
        ),
        data=TextData(root=str(tmp_path), seq_len=32),
        optim=AdamW(),
        train=Train(duration="4 steps", batch_size=8),
        eval=Eval(every="2 steps"),
        checkpoint=Checkpoint(every="0 steps"),
        monitor=Monitor(every="1 steps", tensorboard=False),
    )


def test_tasks_do_not_change_the_training_by_a_bit(
    experiment: Experiment, package: Path, tmp_path: Path
):
    tasks = replace(experiment.eval, tasks=("colours",), task_items=2, tokenizer="small")
    runs = {"without": experiment, "with": replace(experiment, eval=tasks)}
    for name, run in runs.items():
        assert train_experiment(resolve(run), tmp_path / name)
    without, with_ = (load_trained(tmp_path / name).params for name in runs)
    named = dict(_leaves(without))
    for name, leaf in _leaves(with_):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(named[name]), err_msg=name)
    lines = (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    evaluated = {row["step"] for row in rows if "eval/colours/len_norm" in row}
    assert evaluated == {0, 2, 4}


def _leaves(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
