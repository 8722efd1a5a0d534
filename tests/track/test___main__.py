import json
import shutil
from pathlib import Path

import pytest

from jaxpretrain.track import __main__ as command
from tests.track.conftest import CONFIG, Recorder, write_sweep

ALL = "has all of it"


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "require_packages", lambda names, flag: None)


def test_the_trackers_are_those_of_the_config_or_of_the_flag(
    workdir: Path, recorder: Recorder, run_command
) -> None:
    assert run_command(command.main, workdir)[:2] == (0, f"{workdir}: wandb {ALL}\n")
    code, out, _ = run_command(command.main, workdir, "--to=mlflow,wandb")
    assert code == 0 and out == f"{workdir}: wandb {ALL}\n{workdir}: mlflow {ALL}\n"
    assert len(recorder.runs) == 2  # each has a key of its own


def test_the_runs_of_a_sweep_are_sent_one_by_one(
    workdir: Path, recorder: Recorder, run_command
) -> None:
    sweep = workdir.parent / "sweep"
    for name in ("a/seed1", "b/seed1"):
        shutil.copytree(workdir, sweep / name)
    write_sweep(sweep, {"a/seed1": 1, "b/seed1": 1, "b/seed2": 2})  # the last is still to come
    code, out, _ = run_command(command.main, sweep)
    assert code == 0 and out.count(ALL) == 2
    assert [run.name for run in recorder.opened] == ["a/seed1", "b/seed1"]


def test_a_tracker_that_fails_is_a_line_and_the_others_go_on(
    workdir: Path, recorder: Recorder, run_command
) -> None:
    other = workdir.parent / "other"
    shutil.copytree(workdir, other)
    (other / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "train/loss": 2.0}\n')
    recorder.num_lines_left = 5
    code, out, err = run_command(command.main, workdir.parent)
    assert code == 1 and out == f"{other}: wandb {ALL}\n"
    assert f"error: {workdir}: wandb: ConnectionError: the line is cut" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=wanb"], "--to=wanb: there is no tracker 'wanb'. Did you mean 'wandb'?"),
        (["--t=wandb"], "unknown flag --t. Did you mean --to?"),
        ([], "its config names no trackers; add --to=wandb,mlflow"),
    ],
)
def test_bad_input_is_one_line(workdir: Path, run_command, flags, message) -> None:
    config = CONFIG | {"monitor": {"trackers": []}}
    (workdir / "experiment.json").write_text(json.dumps({"config": config}))
    code, out, err = run_command(command.main, workdir, *flags)
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1


def test_a_folder_without_runs_is_one_line(tmp_path: Path, run_command) -> None:
    code, _, err = run_command(command.main, tmp_path, "--to=wandb")
    assert code == 2 and "no run has written metrics there" in err
