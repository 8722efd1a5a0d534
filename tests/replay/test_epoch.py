from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxpretrain.data.images.images import TrainingImages
from jaxpretrain.replay.epoch import ANCHOR, hashes_of, look_around
from jaxpretrain.replay.microscope import Microscope
from jaxpretrain.replay.stretch import open_stretch
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.run import train_experiment
from tests.replay.conftest import SEQ_LEN, write_shards


def test_hashes_are_equal_where_tokens_are():
    tokens = np.random.default_rng(0).integers(50, size=(2, 60))
    tokens[1, 10 : 10 + ANCHOR] = tokens[0, 3 : 3 + ANCHOR]
    hashes = hashes_of(tokens)
    assert hashes.shape == (2, 60 - ANCHOR + 1)
    assert hashes[1, 10] == hashes[0, 3]
    assert len(np.unique(hashes)) == hashes.size - 1
    assert hashes_of(tokens[:, :5]).size == 0


def test_a_document_that_comes_again_in_the_epoch_is_found(config: Experiment, tmp_path: Path):
    root = write_shards(tmp_path / "data")
    files = [np.fromfile(path, "<u2") for path in sorted((root / "train").iterdir())]
    files[4][5 * SEQ_LEN + 9 : 6 * SEQ_LEN] = files[1][2 * SEQ_LEN + 9 : 3 * SEQ_LEN]
    files[4].tofile(root / "train" / "shard4.npy")
    config = replace(config, data=replace(config.data, root=str(root)))
    assert train_experiment(resolve(config), tmp_path / "run")
    stretch = open_stretch(tmp_path / "run", "1-12", 0)  # the first epoch
    views = [step.seen for step in stretch.run(stretch.restore(), Microscope(stretch, 1))]
    around = look_around(stretch, [view for view in views if view])
    assert around is not None and around.share == 1.0
    assert around.counts.sum() == 96 * SEQ_LEN
    places = {one.place.name: one.place.sample for one in around.again}
    assert set(places) == {
        "train/shard1.npy, tokens 128 to 191",
        "train/shard4.npy, tokens 320 to 383",
    }
    one, other = places.values()
    assert {samples[0] for samples in around.again.values()} == {one, other}
    part = look_around(stretch, [view for view in views if view], max_tokens=1)
    assert part is not None and part.share == 1.0  # a block is looked at in any case


def test_an_image_whose_file_is_there_twice_is_found(images: Path):
    stretch = open_stretch(images, "5-6")
    data = stretch.data
    assert isinstance(data, TrainingImages)
    views = [step.seen for step in stretch.run(stretch.restore(), Microscope(stretch, 1))]
    shown = [view for view in views if view]
    around = look_around(stretch, shown)
    assert around is not None and (around.share, around.again) == (1.0, {})
    first = shown[0].examples[0]
    other = int(data.order(np.array([3]))[0])  # no sample of these steps
    root = Path(stretch.experiment.data.source.root)  # pyright: ignore
    copy, old = root / data.images.name(data.indices[other]), None
    try:
        old = copy.read_bytes()
        copy.write_bytes((root / first.place.name).read_bytes())
        around = look_around(stretch, shown)
    finally:
        copy.write_bytes(old or b"")
    assert around is not None and around.again == {first: [3]}
