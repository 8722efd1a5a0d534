import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.hugging_face import write_hugging_face
from jaxpretrain.interop.tables import whole
from jaxpretrain.train.program import Program
from jaxpretrain.train.step import TrainState
from jaxpretrain.train.trained import experiment_of, load_arrays, load_trained, open_source
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
    checkpoints.wait()
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


def test_the_same_paths_give_the_weights_unread(saved: Path, fresh: TrainState):
    for path, step, added in (("", 5, 1), ("checkpoints/3", 3, 0)):
        source = open_source(saved / path)
        expected = to_named(fresh.params)
        assert (source.step, source.folder, set(source.params)) == (step, saved, set(expected))
        for name, array in source.params.items():
            np.testing.assert_array_equal(whole(array), expected[name] + np.float32(added))


def test_a_hugging_face_folder_serves(saved: Path, tmp_path: Path, fresh: TrainState):
    source = open_source(saved / "checkpoints" / "3")
    write_hugging_face(source, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 60}}}))
    trained = load_trained(tmp_path / "hf")
    assert trained.step == 0 and trained.tokenizer_path == tmp_path / "hf" / "tokenizer.json"
    assert trained.experiment.model.vocab_size == 61
    assert trained.experiment.data.example_spec() == source.data.example_spec()
    assert jax.tree.structure(trained.params) == jax.tree.structure(fresh.params)
    for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(fresh.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)
        assert len(a.sharding.device_set) == 8
    again = open_source(tmp_path / "hf")
    assert experiment_of(again) == trained.experiment


def test_single_arrays_come_where_they_are_wanted(saved: Path, tmp_path: Path, fresh: TrainState):
    """Of a run any, of a Hugging Face folder the parameters; of these all."""
    write_hugging_face(open_source(saved / "checkpoints" / "3"), tmp_path / "hf")
    where = jax.sharding.SingleDeviceSharding(jax.devices()[3])

    def like(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    named = to_named(fresh)
    params = {name: like(x) for name, x in named.items() if name.startswith("params/")}
    for path, name in {
        saved / "checkpoints" / "3": "optimizer/adam/count",
        tmp_path / "hf": "params/embed/embedding",
    }.items():
        wanted = params | {name: like(named[name])}
        _, found = load_arrays(path, wanted, flag="--config.init_from")
        assert found.keys() == wanted.keys() and found[name].sharding == where
        np.testing.assert_array_equal(np.asarray(found[name]), named[name])
    embedding = "params/embed/embedding"
    for wanted, message in {
        "optimizer/adam/count": f"--config.init_from={tmp_path / 'hf'} has no optimizer/adam/count",
        embedding: r"params/embed/embedding is \[64, 32\], not \[64, 31\]",
    }.items():
        leaf = named[wanted][..., :31] if wanted == embedding else named[wanted]
        with pytest.raises(InputError, match=message):
            load_arrays(tmp_path / "hf", params | {wanted: like(leaf)}, flag="--config.init_from")


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
    for load in (load_trained, open_source):
        with pytest.raises(InputError, match="checkpoint 5 of .* is damaged"):
            load(run)
    assert (run / "checkpoints" / "5").is_dir()
