"""A run on images from beginning to end: the trainer knows nothing of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images.image_sources import Folder
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.linear_probe import LinearProbe
from jaxpretrain.evals.samples import Reconstructions
from jaxpretrain.models.sapiens.model import VitMae
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import WarmupCosine
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.train.experiment import Checkpoint, Experiment, Monitor, Train, resolve
from jaxpretrain.train.program import make_program
from jaxpretrain.train.run import train_experiment
from jaxpretrain.train.stages import StageProgram
from jaxpretrain.train.trained import load_trained

image_module = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Six steps of eight on twenty images of two classes: through two ends of an epoch."""
    root = tmp_path_factory.mktemp("images") / "levels"
    root.mkdir()
    random = np.random.default_rng(0)
    for index in range(24):
        folder = root / ("bright" if index % 2 else "dark")
        folder.mkdir(exist_ok=True)
        pixels = random.integers(100, size=(20, 24, 3)) + 150 * (index % 2)
        image_module.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return Experiment(
        model=VitMae(
            patch_size=4,
            d_model=32,
            num_layers=2,
            num_heads=4,
            d_ff=32,
            decoder_d_model=16,
            decoder_num_layers=1,
            decoder_num_heads=2,
            dtype="float32",
            remat="none",
        ),
        data=ImageData(source=Folder(str(root)), size=16, validation_fraction=0.2),
        optim=AdamW(schedule=WarmupCosine(peak=1e-2, end=0.0, warmup=2), weight_decay=0.05),
        train=Train(
            duration="6 steps",
            batch_size=8,
            compiler_options={"xla_backend_optimization_level": "0"},
        ),
        eval=Eval(
            every="3 steps",
            samples=Reconstructions(2),
            probe=LinearProbe(shots=(2,), num_seeds=2),
        ),
        checkpoint=Checkpoint(every="3 steps", keep_last=None),
        monitor=Monitor(every="1 steps", tensorboard=False),
    )


@pytest.fixture(scope="module")
def finished(images: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert train_experiment(resolve(images), workdir)
    return workdir


def test_it_reports_what_is_promised(finished: Path):
    lines = read_lines(finished / "metrics.jsonl")
    last = {name: value for line in lines for name, value in line.items() if line["step"] == 6}
    assert last["train/images"] == 48 and last["perf/data_wait_fraction"] >= 0
    assert "perf/images_per_second" in last and "eval/levels/perplexity" not in last
    assert last["eval/levels/loss"] > 0 and last["eval/levels/loss_predict_zero"] > 0.9
    assert last["eval/levels/probe_2shot"] == last["eval/levels/probe_2shot_random_init"] == 1.0
    names = sorted(p.name for p in (finished / "pictures/levels/reconstructions").iterdir())
    assert names == ["00000000.png", "00000003.png", "00000006.png"]


def test_what_cannot_be_evaluated_is_refused_before_anything_is_compiled(
    images: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(StageProgram, "train_step", property(lambda self: pytest.fail("compiled")))
    none_held_out = replace(images, data=replace(images.data, validation_fraction=0.0))
    with pytest.raises(InputError, match="reconstructions: no images are held out; raise data"):
        train_experiment(resolve(none_held_out), tmp_path / "run")
    probe_only = replace(none_held_out, eval=replace(images.eval, samples=None))
    with pytest.raises(InputError, match="no images are held out to be classified"):
        train_experiment(resolve(probe_only), tmp_path / "run")
    shots = replace(images, eval=replace(images.eval, probe=LinearProbe(shots=(2, 11))))
    with pytest.raises(InputError, match="the class bright has .* images to train on, not 11; set"):
        train_experiment(resolve(shots), tmp_path / "run")


def test_resumed_with_workers_it_is_bit_for_bit_the_same(
    finished: Path, images: Experiment, tmp_path: Path
):
    """After a save in the middle of an epoch, through its end."""
    workdir = tmp_path / "run"
    first = replace(images, train=replace(images.train, duration="3 steps"))
    schedule = replace(images.optim.schedule, horizon=6)
    optim: Any = replace(images.optim, schedule=schedule)
    assert train_experiment(resolve(replace(first, optim=optim)), workdir)
    workers = replace(images, data=replace(images.data, num_workers=2), optim=optim)
    assert train_experiment(resolve(workers), workdir)
    expected, found = (load_trained(folder).params for folder in (finished, workdir))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_neither_microbatches_nor_devices_change_the_masks(images: Experiment):
    """So they do not change the step either."""
    metrics = []
    for num_devices, microbatch_size, mesh in ((1, None, Mesh()), (1, 2, Mesh()), (8, 1, Mesh())):
        train = replace(images.train, microbatch_size=microbatch_size)
        experiment = resolve(replace(images, train=train, mesh=mesh))
        program = make_program(experiment, jax.devices()[:num_devices])
        data = experiment.data.open(seed=0, limits={})
        batch = program.layout.put(data.batch(np.arange(8)), 8)
        _, values = program.compile()(program.create_state(), batch)
        del values["signals"]
        metrics.append({name: float(value) for name, value in values.items()})
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], rel=1e-4)
