"""A small training state, checkpoints of it, and ways to damage them."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.parallel.mesh import Layout, Mesh
from jaxpretrain.train.step import TrainState


@pytest.fixture(autouse=True)
def _collect_unfinished_reads() -> Iterator[None]:
    yield
    gc.collect()


AXES = {"w": ("embed", "vocab"), "b": ("vocab",)}


class Moments(NamedTuple):
    mu: Any
    count: Any


def values_of(seed: int = 0) -> TrainState:
    """A state as numpy arrays."""
    random = np.random.default_rng(seed)
    params = {
        "w": random.normal(size=(64, 128)).astype(np.float32),
        "b": random.normal(size=128).astype(np.float32),
    }
    moments = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), params)
    return TrainState(
        step=np.int32(seed),
        rng=np.array([seed, 7], np.uint32),
        params=params,
        optimizer={"adam": Moments(moments, np.int32(seed)), "clip": ()},
    )


def shardings(layout: Layout) -> Any:
    params = layout.tree(AXES, values_of().params)
    return TrainState(
        step=layout.replicated,
        rng=layout.replicated,
        params=params,
        optimizer={"adam": Moments(params, layout.replicated), "clip": ()},
    )


def layout_of(*sizes: int, num_devices: int = 8) -> Layout:
    return Layout(Mesh(*sizes).build(jax.devices()[:num_devices]))


def state_of(layout: Layout, seed: int = 0) -> TrainState:
    return jax.device_put(values_of(seed), shardings(layout))


def like_of(layout: Layout) -> TrainState:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        values_of(),
        shardings(layout),
    )


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), b)


def save(directory: Path, *steps: int, **kept: Any) -> None:
    checkpoints = Checkpoints(directory, **kept)
    for step in steps:
        checkpoints.save(step, state_of(layout_of(), step), {"data_position": step})
    checkpoints.wait()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints of steps 1, 2 and 3. Tests that damage it copy it first."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir / "checkpoints", 1, 2, 3)
    return workdir


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """Their directory, in a folder of this test alone."""
    return shutil.copytree(saved, tmp_path / "run") / "checkpoints"


def data_files(directory: Path, step: int) -> list[Path]:
    """The files that hold the bulk of the arrays."""
    files = [path for path in (directory / str(step) / "state").rglob("d/*") if path.is_file()]
    assert files
    return sorted(files, key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
