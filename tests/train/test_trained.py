import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.checkpoint import Checkpoints
from jaxpretrain.train.program import Program
from jaxpretrain.train.state import TrainState
from jaxpretrain.train.trained import load_trained
from jaxpretrain.train.workdir import write_experiment


@pytest.fixture(scope="module")
def saved(program: Program, fresh: TrainState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with steps 3 and 5; the parameters of step 5 are those of 3, plus one."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    workdir.mkdir()
    write_experiment(workdir, program.experiment, "")
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(3, jax.device_put(fresh), {})
    checkpoints.save(5, jax.device_put(jax.tree.map(lambda x: x + 1, fresh)), {})
    checkpoints.close()
    return workdir


@pytest.mark.parametrize(
    ("path", "step", "added"), [("", 5, 1), ("checkpoints/3", 3, 0), ("checkpoints/5", 5, 1)]
)
def test_a_folder_or_one_of_its_steps_serves(
    saved: Path, program: Program, fresh: TrainState, path: str, step: int, added: int
):
    trained = load_trained(saved / path)
    assert (trained.step, trained.experiment) == (step, program.experiment)
    assert trained.tokenizer_path is None
    assert jax.tree.structure(trained.params) == jax.tree.structure(fresh.params)
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(fresh.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b + np.float32(added))
        assert len(a.sharding.device_set) == 8


def test_the_tokenizer_comes_along(saved: Path, tmp_path: Path):
    run = shutil.copytree(saved, tmp_path / "run")
    (run / "tokenizer.json").write_text("{}")
    assert load_trained(run / "checkpoints" / "3").tokenizer_path == run / "tokenizer.json"


def test_what_is_no_checkpoint_is_one_line(saved: Path, tmp_path: Path):
    run = shutil.copytree(saved, tmp_path / "run")
    (run / "checkpoints" / "4").mkdir()
    shutil.copytree(run, tmp_path / "new", ignore=shutil.ignore_patterns("checkpoints"))
    for path, message in {
        tmp_path / "nowhere": "no such folder",
        tmp_path: "neither a run's folder",
        run / "checkpoints": "neither a run's folder",
        run / "checkpoints" / "4": "checkpoint 4 of .* is damaged",
        tmp_path / "new": "no finished checkpoint yet",
    }.items():
        with pytest.raises(InputError, match=message):
            load_trained(path)


def test_a_damaged_one_is_said_to_be_and_stays(saved: Path, tmp_path: Path):
    run = shutil.copytree(saved, tmp_path / "run")
    (run / "checkpoints" / "5" / "meta" / "metadata").write_text("")
    with pytest.raises(InputError, match="checkpoint 5 of .* is damaged"):
        load_trained(run)
    assert (run / "checkpoints" / "5").is_dir()
