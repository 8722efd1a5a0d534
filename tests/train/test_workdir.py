import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.train import workdir as folder
from jaxpretrain.train.experiment import Experiment, resolve


@pytest.fixture
def resolved(experiment: Experiment) -> Experiment:
    return resolve(experiment)


@pytest.fixture
def run(resolved: Experiment, tmp_path: Path) -> Path:
    """The folder of a run that has begun."""
    path = tmp_path / "run"
    assert folder.claim(path, resolved, allow_change=False) == []
    path.mkdir()
    folder.write_experiment(path, resolved, "fingerprint")
    return path


def test_a_new_folder_is_made_only_when_it_is_held(resolved: Experiment, tmp_path: Path):
    path = tmp_path / "a" / "b"
    assert folder.claim(path, resolved, allow_change=False) == []
    assert not path.parent.exists()
    with folder.hold(path):
        assert path.is_dir()


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path):
    other = folder.hold(tmp_path)
    with folder.hold(tmp_path), pytest.raises(InputError, match="another process trains in it"):
        other.__enter__()
    with folder.hold(tmp_path):
        pass


def test_the_experiment_comes_back(run: Path, resolved: Experiment):
    assert folder.read_experiment(run) == resolved
    document = json.loads((run / "experiment.json").read_text())
    assert document["data_fingerprint"] == "fingerprint"
    assert {"python", "jax", "flax", "optax"} <= document["versions"].keys()
    assert [path.name for path in run.iterdir()] == ["experiment.json"]


def test_the_same_run_goes_on_silently(run: Path, resolved: Experiment):
    assert folder.claim(run, resolved, allow_change=False) == []


def test_another_run_is_refused_by_its_keys(run: Path, resolved: Experiment):
    other = replace(resolved, seed=1, model=replace(resolved.model, d_model=64))
    before = (run / "experiment.json").read_bytes()
    with pytest.raises(InputError) as error:
        folder.claim(run, other, allow_change=False)
    message = str(error.value)
    assert "seed: 6198 there, 1 here" in message and "model.d_model: 32 there, 64 here" in message
    assert "--allow_config_change" in message and "\n" not in message
    assert (run / "experiment.json").read_bytes() == before


def test_many_differences_are_counted(run: Path, resolved: Experiment):
    model = replace(
        resolved.model,
        vocab_size=7,
        embedding_rows=8,
        d_model=8,
        num_layers=1,
        num_heads=1,
        d_ff=8,
        qk_norm=True,
        z_loss=1.0,
    )
    with pytest.raises(InputError, match="and 2 more"):
        folder.claim(run, replace(resolved, model=model), allow_change=False)


def test_a_change_may_be_allowed_and_is_then_told(run: Path, resolved: Experiment):
    lines = folder.claim(run, replace(resolved, seed=1), allow_change=True)
    assert lines == ["changed since the last start: seed was 6198, is 1"]


def test_what_is_not_identity_may_change_and_is_told(run: Path, resolved: Experiment):
    longer = replace(resolved, train=replace(resolved.train, duration=9, microbatch_size=2))
    assert folder.claim(run, longer, allow_change=False) == [
        "changed since the last start: train.duration was 5, is 9",
        "changed since the last start: train.microbatch_size was None, is 2",
    ]


def test_other_data_is_refused(run: Path):
    folder.check_data(run, "fingerprint", allow_change=False)
    with pytest.raises(InputError, match="not that of this run .*fingerprint other, was finger"):
        folder.check_data(run, "other", allow_change=False)
    folder.check_data(run, "other", allow_change=True)
    folder.check_data(run / "new", "other", allow_change=False)


def test_checkpoints_without_an_experiment_are_nobodys(resolved: Experiment, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    folder.claim(tmp_path, resolved, allow_change=False)  # a start that was cut short
    (tmp_path / "checkpoints" / "5").mkdir()
    with pytest.raises(InputError, match="has checkpoints but no experiment.json"):
        folder.claim(tmp_path, resolved, allow_change=False)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"config": 1}', '{"config": {"x": 1}}'])
def test_a_damaged_experiment_is_one_line(run: Path, content: str):
    (run / "experiment.json").write_text(content)
    with pytest.raises(InputError):
        folder.read_experiment(run)


def test_a_value_of_another_type_is_named_with_its_file(run: Path):
    document = json.loads((run / "experiment.json").read_text())
    document["config"]["model"]["d_model"] = None
    (run / "experiment.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"experiment\.json: config\.model\.d_model: expected int"):
        folder.read_experiment(run)


def test_a_folder_without_a_run_is_no_run(tmp_path: Path):
    with pytest.raises(InputError, match="is no run: it has no experiment.json"):
        folder.read_experiment(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="--workdir="), folder.hold(path):
            pass


def test_the_tokenizer_is_kept_beside_the_checkpoints(tmp_path: Path):
    (tmp_path / "source.json").write_text("{}")
    folder.keep_tokenizer(tmp_path, None)
    assert not (tmp_path / "tokenizer.json").exists()
    folder.keep_tokenizer(tmp_path, tmp_path / "source.json")
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    assert {path.name for path in tmp_path.iterdir()} == {"source.json", "tokenizer.json"}


def test_a_file_is_replaced_in_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.json"
    folder.write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.write_atomically(path, "new")
    assert path.read_text() == "old"
