import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.optim.optimizers import RateScaling
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Experiment, Stage, resolve
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.stages import make_stages


def _staged(experiment: Experiment, *stages: Stage, **train: Any) -> Experiment:
    train = {"duration": "8 steps", "microbatch_size": None} | train
    return replace(experiment, train=replace(experiment.train, stages=stages, **train))


SMALL = Stage("2 steps", batch_size=4)
SHORT = Stage("3 steps", batch_size=8, seq_len=8)


def test_each_sample_is_read_once_in_order(experiment: Experiment):
    stages = make_stages(resolve(_staged(experiment, SMALL, SHORT)), jax.devices()[:1])
    read = [stages.samples(step) for step in range(1, 9)]
    assert [len(samples) for samples in read] == [4, 4, 8, 8, 8, 16, 16, 16]
    assert [sample for samples in read for sample in samples] == list(range(4 + 4 + 24 + 48))


@pytest.mark.parametrize("num_devices", [1, 2])
def test_workers_read_the_same_samples_of_each_step(experiment: Experiment, num_devices: int):
    """What they are sent holds no program, and any step may be asked for first."""
    staged = resolve(_staged(experiment, SMALL, SHORT))
    stages = make_stages(staged, jax.devices()[:num_devices])
    sent = pickle.loads(pickle.dumps(stages.local_samples))
    for step in (8, 1, 4, 2, 6, 3, 9):
        np.testing.assert_array_equal(sent(step), np.array(stages.samples(step)))


def test_a_step_lies_in_the_stage_that_ends_with_it(experiment: Experiment):
    stages = make_stages(resolve(_staged(experiment, SMALL, SHORT)), jax.devices()[:1])
    assert [stages.at(step).last for step in (1, 2, 3, 5, 6, 8, 9)] == [2, 2, 5, 5, 8, 8, 8]
    assert [stages.at(step).batch_size for step in (1, 3, 6)] == [4, 16, 16]
    assert stages.program is stages.at(8).program
    assert stages.describe()["stages"] == [
        "steps 1 to 2: batch 4 x 16 = 64 tokens",
        "steps 3 to 5: batch 16 x 8 = 128 tokens",
        "steps 6 to 8: batch 16 x 16 = 256 tokens",
    ]


def test_shorter_sequences_are_pieces_of_the_same_examples(experiment: Experiment):
    """So a stage changes neither the order of the data nor how often it is read."""
    resolved = resolve(_staged(experiment, SMALL, SHORT))
    stages = make_stages(resolved, jax.devices()[:1])
    limits = stages.program.model.input_limits()
    data = resolved.data.open(seed=0, limits=limits)
    whole = data.batch(np.arange(8, 16))["tokens"]
    pieces = stages.read(data, 3)["tokens"]
    assert pieces.shape == (16, 8)
    np.testing.assert_array_equal(pieces.reshape(8, 16), whole)
    assert stages.at(3).program.batch["tokens"].shape == pieces.shape


def test_the_rates_of_a_stage_are_those_of_the_whole_run(experiment: Experiment):
    """Scaling follows the batch size of the run, not the smaller one that it begins with."""
    scaled = replace(experiment.optim, rate_scaling=RateScaling(base_batch=4))
    plain, scaled = (
        resolve(_staged(replace(experiment, optim=optim), SMALL))
        for optim in (experiment.optim, scaled)
    )
    stages = make_stages(scaled, jax.devices()[:1]).stages
    assert [stage.batch_size for stage in stages] == [4, 16]
    rate = plain.optim.learning_rate(8, 16)
    for stage in stages:
        assert stage.program.optimizer.learning_rate(1) == 4.0 * rate(1)


def test_durations_count_what_the_stages_see(experiment: Experiment):
    """2 x 4 + 3 x 8 sequences of 16 tokens, and 48 sequences in steps of 16 after them."""
    resolved = resolve(
        _staged(experiment, SMALL, replace(SHORT, duration="384 tokens"), duration="1280 tokens")
    )
    assert [stage.duration for stage in resolved.train.stages] == [2, 3]
    assert resolved.train.duration == 8
    assert resolve(resolved) == resolved


def test_a_staged_run_resumes_bit_for_bit(experiment: Experiment, tmp_path: Path):
    """Also in the middle of a stage, and with the tokens that were really seen."""
    staged = _staged(experiment, replace(SMALL, batch_size=8), SHORT)
    metrics = {}
    for name, ends in {"whole": [8], "parts": [4, 8]}.items():
        for end in ends:
            stop = replace(staged, checkpoint=replace(staged.checkpoint, every=4))
            part = replace(stop, train=replace(staged.train, duration=8))
            _train_until(part, tmp_path / name, end)
        lines = read_lines(tmp_path / name / "metrics.jsonl")
        metrics[name] = [line for line in lines if "train/loss" in line]
    whole, parts = metrics["whole"], metrics["parts"]
    assert [line["train/loss"] for line in whole] == [line["train/loss"] for line in parts]
    seen = np.cumsum([8, 8, 8, 8, 8, 16, 16, 16]) * 16
    assert [line["train/tokens"] for line in whole] == list(seen)
    # A sequence predicts all its tokens but one; there are twice as many of half the length.
    assert [line["train/weight"] for line in whole] == [120, 120, 112, 112, 112, 240, 240, 240]


def _train_until(experiment: Experiment, workdir: Path, end: int) -> None:
    """Trains, and forgets what came after step `end`."""
    train_experiment(resolve(experiment), workdir)
    for folder in (workdir / "checkpoints").iterdir():
        if folder.name.isdecimal() and int(folder.name) > end:
            folder.rename(workdir / f"forgotten-{folder.name}")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("8 steps", batch_size=4), "train.stages.0 ends at step 8, the run at step 8"),
        (Stage("2 steps", batch_size=0), "train.stages.0.batch_size=0: must be from 1 to 16777216"),
        (Stage("2 steps", batch_size=3), "train.stages.0: train.batch_size=3 does not divide"),
        (Stage("2 steps", seq_len=5), "train.stages.0.seq_len=5: must be 2 or more and divide"),
        (Stage("2 steps", seq_len=32), "train.stages.0.seq_len=32"),
        (Stage("2 stops"), "--config.train.stages.0.duration: duration '2 stops'"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(experiment: Experiment, stage: Stage, message: str):
    with pytest.raises(InputError, match=message):
        make_stages(resolve(_staged(experiment, stage)), jax.devices()[:2])
