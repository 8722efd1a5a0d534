"""Causes that are planted in short real runs, each of which a replay names first."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.data.text.corpus import RawTokens
from jaxpretrain.replay.microscope import Microscope
from jaxpretrain.replay.stretch import open_stretch
from jaxpretrain.replay.suspects import Suspect, suspects
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.program import make_program
from jaxpretrain.train.run import train_experiment
from tests.replay.conftest import NUM_SHARDS, SEQ_LEN, SHARD, write_shards
from tests.train.conftest import VOCAB_SIZE


def found_in(workdir: Path, steps: str) -> list[Suspect]:
    stretch = open_stretch(workdir, steps)
    made = [*stretch.run(stretch.restore(), Microscope(stretch, 4))]
    return suspects(made, stretch.rate_before, stretch.first)


def trained(config: Experiment, tmp_path: Path, plant: Callable[[Path], None]) -> Path:
    """The folder of a run on shards into which something is planted."""
    root = write_shards(tmp_path / "data")
    plant(root)
    config = replace(config, data=replace(config.data, root=str(root)))
    assert train_experiment(resolve(config), tmp_path / "run")
    return tmp_path / "run"


def test_nothing_stands_out_in_a_healthy_run(plain: Path):
    assert found_in(plain, "13-16") == []
    assert found_in(plain, "5-12") == []


def test_a_document_of_repeated_tokens(config: Experiment, tmp_path: Path):
    def plant(root: Path) -> None:
        tokens = np.fromfile(root / "train" / "shard3.npy", "<u2")
        tokens[5 * SEQ_LEN : 6 * SEQ_LEN] = 7
        tokens.tofile(root / "train" / "shard3.npy")

    workdir = trained(config, tmp_path, plant)
    data = open_stretch(workdir, "1-16", 0).data
    (sample, *_) = data.find(3 * SHARD + 5, 128)  # pyright: ignore
    step = sample // 8 + 1
    first, *_ = found_in(workdir, f"{max(step - 1, 1)}-{step + 1}")
    assert first.kind == "document" and first.step == step
    assert first.name.startswith(f"train/shard3.npy, tokens 320 to 383 (sample {sample}, row")
    assert first.why.startswith("100% of its 64 tokens repeat one token; its loss is ")


def test_a_corrupted_shard(config: Experiment, tmp_path: Path):
    def plant(root: Path) -> None:
        path = root / "train" / "shard2.npy"
        random = np.random.default_rng(5).integers(VOCAB_SIZE, size=SHARD * SEQ_LEN)
        random.astype("<u2").tofile(path)

    workdir = trained(config, tmp_path, plant)
    first, *_ = found_in(workdir, "13-16")
    assert (first.kind, first.name) == ("shard", "train/shard2.npy")


def test_a_mask_that_is_wrong_in_one_shard(config: Experiment, tmp_path: Path):
    """The first half of each sequence is a prompt, which is not to be learnt."""
    masks = tmp_path / "masks" / "train"
    masks.mkdir(parents=True)
    for number in range(NUM_SHARDS):
        mask = np.ones((SHARD, SEQ_LEN), np.uint8)
        mask[:, : SEQ_LEN // 2] = number == 4
        mask.tofile(masks / f"shard{number}.npy")
    raw = RawTokens(label_mask=str(masks.parent))
    config = replace(config, data=replace(config.data, raw=raw))
    first, *_ = found_in(trained(config, tmp_path, lambda root: None), "13-16")
    assert (first.kind, first.name) == ("mask", "train/shard4.npy")
    assert first.why == "100% of its tokens count in the loss, in other files 51%"


def test_a_rate_that_jumps(config: Experiment, plain: Path, tmp_path: Path):
    workdir = _back_to(8, plain, tmp_path)
    schedule = replace(config.optim.schedule, peak=1.0)
    config = replace(config, optim=replace(config.optim, schedule=schedule))
    assert train_experiment(resolve(config), workdir, allow_config_change=True)
    first, *_ = found_in(workdir, "9-12")
    assert (first.kind, first.name) == ("step", "step 9")
    assert first.why.startswith("the learning rate goes from 0.00") and first.score > 50


def test_a_slow_rise_of_the_rate_is_no_jump_where_few_steps_are_recorded(
    config: Experiment, tmp_path: Path
):
    schedule = replace(config.optim.schedule, warmup="16 steps")
    monitor = replace(config.monitor, every="12 steps")
    config = replace(config, optim=replace(config.optim, schedule=schedule), monitor=monitor)
    assert train_experiment(resolve(config), tmp_path / "run")
    stretch = open_stretch(tmp_path / "run", "9-12")
    assert stretch.before["step"] == 1
    assert [one for one in found_in(tmp_path / "run", "9-12") if one.kind == "step"] == []


def test_a_layer_that_explodes(config: Experiment, plain: Path, tmp_path: Path):
    workdir = _back_to(8, plain, tmp_path)
    program = make_program(resolve(config), jax.devices())
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, document = checkpoints.restore(8, program.state)
    named = to_named(state)
    name = "params/blocks/0/up/kernel"
    named[name] = named[name].at[1].multiply(300.0)
    shutil.rmtree(workdir / "checkpoints" / "8")
    checkpoints.save(8, from_named(state, named), document)
    checkpoints.wait()
    assert [one.problem for one in checkpoints.ended()] == [None]
    assert train_experiment(resolve(config), workdir)
    first, *_ = found_in(workdir, "9-12")
    assert (first.kind, first.name) == ("layer", "layer 1 of blocks")


def _back_to(step: int, run: Path, tmp_path: Path) -> Path:
    """A copy of a run whose checkpoints after a step are gone."""
    workdir = shutil.copytree(run, tmp_path / "run")
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return workdir
