"""Short runs to be replayed: on six shards of tokens, over borders of stages and of an epoch."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.data.images.image_sources import Folder
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.text.text import TextData
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Checkpoint, Experiment, Stage, resolve
from jaxpretrain.train.run import train_experiment
from tests.train.conftest import VOCAB_SIZE
from tests.train.conftest import experiment as experiment
from tests.train.conftest import tokens as tokens

SEQ_LEN = 64
NUM_SHARDS = 6
SHARD = 16  # sequences


def write_shards(root: Path) -> Path:
    """Token files of a process whose ids mostly follow from the one before, without short loops."""
    random = np.random.default_rng(0)
    (root / "train").mkdir(parents=True)
    for number in range(NUM_SHARDS):
        ids = random.integers(VOCAB_SIZE, size=SHARD * SEQ_LEN)
        for i in np.flatnonzero(random.random(len(ids)) < 0.8)[1:]:
            ids[i] = (ids[i - 1] + 7) % VOCAB_SIZE
        ids.astype("<u2").tofile(root / "train" / f"shard{number}.npy")
    return root


@pytest.fixture(scope="session")
def config(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Sixteen steps of eight sequences, through the end of an epoch, all checkpoints kept."""
    root = write_shards(tmp_path_factory.mktemp("shards"))
    return replace(
        experiment,
        data=TextData(root=str(root), seq_len=SEQ_LEN, validation_split=None),
        train=replace(experiment.train, duration="16 steps", batch_size=8),
        checkpoint=Checkpoint(every="4 steps", keep_last=None),
        monitor=replace(experiment.monitor, signals_every="1 steps"),
    )


@pytest.fixture(scope="session")
def staged(config: Experiment) -> Experiment:
    """The same with smaller batches and then shorter sequences at first."""
    stages = Stage("3 steps", batch_size=8, seq_len=32), Stage("3 steps", seq_len=32)
    return replace(config, train=replace(config.train, batch_size=16, stages=stages))


@pytest.fixture(scope="session")
def run(staged: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the staged run, whose second session has gone on from step 8."""
    workdir = tmp_path_factory.mktemp("replays") / "run"
    assert train_experiment(resolve(staged), workdir)
    for step in (12, 16):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    assert train_experiment(resolve(staged), workdir)
    marks = [x["step"] for x in read_lines(workdir / "metrics.jsonl") if "run/num_devices" in x]
    assert marks == [0, 8]
    return workdir


@pytest.fixture(scope="session")
def plain(config: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run without stages."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    assert train_experiment(resolve(config), workdir)
    return workdir


@pytest.fixture(scope="session")
def images(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of which one folder is noise."""
    image_module = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(32):
        folder = root / ("noise" if index % 8 == 0 else "flat")
        folder.mkdir(exist_ok=True)
        pixels = random.integers(255, size=(16, 16, 3)) if index % 8 == 0 else np.full(
            (16, 16, 3), 8 * index)  # fmt: skip
        image_module.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    config = replace(
        experiment,
        model=VitMae(
            patch_size=4, d_model=32, num_layers=2, num_heads=4, d_ff=32, decoder_d_model=16,
            decoder_num_layers=1, decoder_num_heads=2, dtype="float32", remat="none",
        ),
        data=ImageData(source=Folder(str(root)), size=16, validation_fraction=0.0),
        train=replace(experiment.train, duration="6 steps", batch_size=8, microbatch_size=None),
        eval=replace(experiment.eval, every="0 steps"),
    )  # fmt: skip
    workdir = tmp_path_factory.mktemp("images_run") / "run"
    assert train_experiment(resolve(config), workdir)
    return workdir


def contents(workdir: Path) -> dict[str, bytes]:
    """The files of a run, without its replays."""
    paths = (path for path in sorted(workdir.rglob("*")) if path.is_file())
    names = {path.relative_to(workdir).as_posix(): path for path in paths}
    return {n: path.read_bytes() for n, path in names.items() if not n.startswith("replays/")}
