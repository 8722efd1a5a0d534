import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tensorstore as ts

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.order.order import OlmoOrder
from jaxpretrain.data.text.text import TextData
from jaxpretrain.storage import lease
from jaxpretrain.train import workdir as folder
from jaxpretrain.train.experiment import Experiment, Resolved, resolve


@pytest.fixture
def resolved(experiment: Experiment) -> Resolved:
    return resolve(experiment)


@pytest.fixture
def run(resolved: Resolved, tmp_path: Path) -> Path:
    """The folder of a run that has begun."""
    path = tmp_path / "run"
    assert folder.check_owner(path, resolved, allow_change=False) == []
    path.mkdir()
    folder.write_experiment(path, resolved, "fingerprint")
    return path


def test_a_new_folder_is_made_only_when_it_is_held(resolved: Resolved, tmp_path: Path):
    path = tmp_path / "a" / "b"
    assert folder.check_owner(path, resolved, allow_change=False) == []
    assert not path.parent.exists()
    with folder.lock(path):
        assert path.is_dir()


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path):
    other = folder.lock(tmp_path)
    with folder.lock(tmp_path), pytest.raises(InputError, match="another process trains in it"):
        other.__enter__()
    with folder.lock(tmp_path):
        pass


def test_the_experiment_comes_back(run: Path, resolved: Resolved):
    assert folder.read_experiment(run) == resolved
    document = json.loads((run / "experiment.json").read_text())
    assert document["data_fingerprint"] == "fingerprint"
    assert {"python", "jax", "flax", "optax"} <= document["versions"].keys()
    assert [path.name for path in run.iterdir()] == ["experiment.json"]


def test_the_same_run_goes_on_silently(run: Path, resolved: Resolved):
    assert folder.check_owner(run, resolved, allow_change=False) == []


def test_another_run_is_refused_by_its_keys(run: Path, resolved: Resolved):
    other = replace(resolved, seed=1, model=replace(resolved.model, d_model=64))
    before = (run / "experiment.json").read_bytes()
    with pytest.raises(InputError) as error:
        folder.check_owner(run, other, allow_change=False)
    message = str(error.value)
    assert "seed: 6198 there, 1 here" in message and "model.d_model: 32 there, 64 here" in message
    assert "--allow_config_change" in message and "\n" not in message
    assert (run / "experiment.json").read_bytes() == before


def test_many_differences_are_counted(run: Path, resolved: Resolved):
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
        folder.check_owner(run, replace(resolved, model=model), allow_change=False)


def test_a_change_may_be_allowed_and_is_then_told(run: Path, resolved: Resolved):
    lines = folder.check_owner(run, replace(resolved, seed=1), allow_change=True)
    assert lines == ["changed since the last start: seed was 6198, is 1"]


def test_what_is_not_identity_may_change_and_is_told(run: Path, resolved: Resolved):
    longer = replace(resolved, train=replace(resolved.train, duration=9, microbatch_size=2))
    assert folder.check_owner(run, longer, allow_change=False) == [
        "changed since the last start: train.duration was 5, is 9",
        "changed since the last start: train.microbatch_size was None, is 2",
    ]


def test_other_data_is_refused_by_its_root_and_what_it_holds(run: Path, resolved: Resolved):
    folder.write_experiment(run, resolved, "fingerprint", data_description="8 tokens")
    assert isinstance(resolved.data, TextData)

    def check(workdir: Path, fingerprint: str, *, root: str, allow_change: bool = False) -> None:
        now = replace(resolved, data=replace(resolved.data, root=root))
        folder.check_data(workdir, now, fingerprint, "9 tokens", allow_change=allow_change)

    root = resolved.data.root
    assert isinstance(root, str)
    check(run, "fingerprint", root=root)
    check(run, "fingerprint", root="elsewhere")
    check(run, "other", root="elsewhere", allow_change=True)
    check(run / "new", "other", root="elsewhere")
    with pytest.raises(InputError) as error:
        check(run, "other", root="elsewhere")
    message = str(error.value)
    assert f"data.root is elsewhere, was {root}; it holds [9 tokens], was [8 tokens]" in message
    assert "fingerprint other, was fingerprint." in message and "\n" not in message
    with pytest.raises(InputError, match=f"data.root is {root}, as before; it holds .9 tokens"):
        check(run, "other", root=root)


def test_each_session_is_written_down_and_the_first_stays(run: Path, resolved: Resolved):
    path = run / "experiment.json"
    for first_step in (0, 5, None, 3):  # None: one that trains nothing
        folder.write_experiment(run, resolved, "fingerprint", first_step=first_step)
        if first_step == 0:
            document = json.loads(path.read_text())
            first = document["sessions"][0] | {"git_revision": "abc", "command": ["x"]}
            path.write_text(json.dumps(document | {"sessions": [first]}))
    sessions = json.loads(path.read_text())["sessions"]
    assert [session["first_step"] for session in sessions] == [0, 5, 3]
    assert sessions[0] == first
    names = {"start", "first_step", "command", "versions", "git_revision", "devices"}
    assert all(session.keys() == names for session in sessions)
    assert all(datetime.fromisoformat(session["start"]).tzinfo for session in sessions)


def test_a_folder_without_sessions_keeps_what_it_knows_of_its_last(run: Path, resolved: Resolved):
    path = run / "experiment.json"
    document = json.loads(path.read_text())
    del document["sessions"]
    path.write_text(json.dumps(document | {"git_revision": "abc"}))
    marks = [{"step": step, "time": 1.0, "run/num_devices": 8} for step in (0, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(mark) + "\n" for mark in marks))
    folder.write_experiment(run, resolved, "fingerprint", first_step=9)
    sessions = json.loads(path.read_text())["sessions"]
    assert [(x["first_step"], x["git_revision"] == "abc") for x in sessions] == [
        (4, True),
        (9, False),
    ]


def test_other_code_versions_and_devices_are_told(run: Path):
    assert folder.program_changes(run / "new") == folder.program_changes(run) == []
    path = run / "experiment.json"
    document = json.loads(path.read_text())
    here = document["versions"]["jax"]
    document["versions"] |= {"jax": "0.1", "torch": "2.0"}
    path.write_text(json.dumps(document | {"git_revision": "abc", "devices": "1 x abacus"}))
    [line] = folder.program_changes(run)
    assert line.startswith(f"not what ran last in this folder: versions.jax was 0.1, is {here}; ")
    assert "versions.torch was 2.0, is absent; git_revision was abc, is " in line
    assert "devices was 1 x abacus, is 8 x cpu" in line


def _with_metrics(run: Path, step: int, **document: object) -> None:
    path = run / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | document))
    (run / "metrics.jsonl").write_text(json.dumps({"step": step, "time": 1.0}) + "\n")
    (run / "checkpoints").mkdir()


def _nothing_is_lost(run: Path) -> None:
    """It is refused to begin again in the folder, and nothing changes there."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(InputError) as error:
        folder.require_nothing_lost(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    message = str(error.value)
    assert f"--workdir={run} holds a run that got to step 5, and {run / 'checkpoints'}" in message
    assert "take another folder or delete this one" in message and "\n" not in message


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(run: Path):
    _with_metrics(run, 5)
    folder.require_nothing_lost(run)  # none was saved
    folder.note_saved(run, 5)
    _nothing_is_lost(run)
    (run / "metrics.jsonl").unlink()
    _nothing_is_lost(run)
    (run / "checkpoints").rmdir()
    _nothing_is_lost(run)
    (run / "checkpoints" / "3").mkdir(parents=True)
    folder.require_nothing_lost(run)


def test_a_run_that_ended_before_its_first_save_begins_again(run: Path):
    _with_metrics(run, 5)
    folder.require_nothing_lost(run)
    (run / "checkpoints").rmdir()
    folder.require_nothing_lost(run)
    folder.require_nothing_lost(run / "new")


def test_damaged_checkpoints_set_aside_are_steps_too(run: Path):
    (run / "corrupt" / "5").mkdir(parents=True)
    _nothing_is_lost(run)
    with pytest.raises(InputError, match=r"corrupt has damaged ones, of step 5\)"):
        folder.require_nothing_lost(run)


@pytest.mark.parametrize(("step", "every", "lost"), [(5, 0, True), (4, 0, False), (5, 3, True)])
def test_a_folder_of_before_has_saved_what_its_config_says(
    run: Path, step: int, every: int, lost: bool
):
    document = json.loads((run / "experiment.json").read_text())
    del document["last_saved"]
    document["config"]["checkpoint"]["every"] = every
    (run / "experiment.json").write_text(json.dumps(document))
    _with_metrics(run, step)
    if lost:
        _nothing_is_lost(run)
    else:
        folder.require_nothing_lost(run)


def test_metrics_without_an_experiment_are_nobodys(run: Path):
    _with_metrics(run, 5)
    (run / "experiment.json").unlink()
    _nothing_is_lost(run)


def test_a_field_that_was_added_since_has_its_default(run: Path, resolved: Resolved):
    path = run / "experiment.json"
    document = json.loads(path.read_text())
    del document["config"]["data"]["order"]["epoch_multiple"]
    path.write_text(json.dumps(document))
    assert folder.check_owner(run, resolved, allow_change=False) == []
    chunked = replace(resolved, data=replace(resolved.data, order=OlmoOrder(epoch_multiple=2)))
    with pytest.raises(InputError, match="data.order.epoch_multiple: 1 there, 2 here"):
        folder.check_owner(run, chunked, allow_change=False)


def test_checkpoints_without_an_experiment_are_nobodys(resolved: Resolved, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    folder.check_owner(tmp_path, resolved, allow_change=False)  # a start that was cut short
    (tmp_path / "checkpoints" / "5").mkdir()
    with pytest.raises(InputError, match="has checkpoints but no experiment.json"):
        folder.check_owner(tmp_path, resolved, allow_change=False)


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
        with pytest.raises(InputError, match="--workdir="), folder.lock(path):
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


@pytest.mark.parametrize(
    ("stored", "configured", "given", "expected"),
    [
        ((None, None), (2, None), [], (None, None)),
        ((5, None), (2, None), [], (5, None)),
        ((2, None), (5, None), [], (5, None)),
        ((5, None), (2, None), ["checkpoint.keep_last"], (2, None)),
        ((2, 100), (2, None), [], (2, 100)),
        ((2, 100), (2, 150), [], (2, 50)),  # multiples of both
        ((2, 100), (2, 150), ["checkpoint.keep_every"], (2, 150)),
        ((2, 100), (2, None), ["checkpoint.keep_every"], (2, None)),
        ((9, 100), (2, None), ["checkpoint.keep_last"], (2, 100)),
    ],
)
def test_what_the_last_session_kept_is_kept(
    run: Path, resolved: Resolved, stored: Any, configured: Any, given: Any, expected: Any
):
    def keeping(last: int | None, every: int | None) -> Resolved:
        kept = replace(resolved.checkpoint, keep_last=last, keep_every=every)
        return replace(resolved, checkpoint=kept)

    folder.write_experiment(run, keeping(*stored), "fingerprint")
    found, lines = folder.kept_before(run, keeping(*configured), given)
    assert found == keeping(*expected)
    assert len(lines) == sum(a != b for a, b in zip(configured, expected, strict=True))
    if lines:
        assert f"is {expected[0]}, as" in lines[0] or f"is {expected[1]}, as" in lines[0]


def test_a_new_folder_keeps_what_the_config_says(resolved: Resolved, tmp_path: Path):
    assert folder.kept_before(tmp_path / "new", resolved, []) == (resolved, [])


def test_a_folder_in_a_bucket_is_leased_and_keeps_the_same_files(
    bucket: Path, resolved: Resolved, monkeypatch: pytest.MonkeyPatch
):
    workdir = bucket / "run"
    store = ts.KvStore.open({"driver": "memory"}).result()
    monkeypatch.setattr(lease, "kvstore", lambda _: {"driver": "memory"})
    monkeypatch.setattr(lease.ts.KvStore, "open", lambda _: _Opened(store))
    with folder.lock(workdir) as guard:
        guard()
        folder.write_experiment(workdir, resolved, "abc", first_step=0)
        with pytest.raises(InputError, match="--workdir=gs://bucket/run: another process"):
            put_lease = json.loads(store[".lock"]) | {"machine": "another", "job": ""}
            store[".lock"] = json.dumps(put_lease)
            folder.lock(workdir).__enter__()
    assert folder.check_owner(workdir, resolved, allow_change=False) == []
    assert folder.read_experiment(workdir) == resolved
    with pytest.raises(InputError, match="--workdir=gs://bucket/run/experiment.json: is a file"):
        folder.lock(workdir / "experiment.json").__enter__()


class _Opened(NamedTuple):
    store: ts.KvStore

    def result(self) -> ts.KvStore:
        return self.store
