"""The sweep command, with its runs in this process."""

import csv
import json
import subprocess
import sys

import pytest

from jaxpretrain.sweep import main
from tests.sweeps.tiny import HereLauncher, write_config

GRID = "--grid.model.d_ff=32,40"


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def launcher(monkeypatch):
    here = HereLauncher()
    monkeypatch.setattr("jaxpretrain.sweeps.console.LocalLauncher", lambda *_: here)
    return here


def test_a_sweep_runs_answers_and_is_extended(run_command, config, launcher, tmp_path):
    folder = tmp_path / "sweep"
    flags = [f"--config={config}", f"--workdir={folder}", GRID]
    code, output, error = run_command(main, *flags, "--seeds=2")
    assert code == 0, error
    assert "4 runs: 2 arms x 2 seeds from 6198; the control is d_ff=32" in output
    assert "2 programs to compile" in output
    assert "Compared with d_ff=32 (the config as it stands)" in output
    assert "4 of 4 runs done" in error
    assert len(launcher.commands) == 4
    document = json.loads((folder / "sweep.json").read_text())
    control, other = document["arms"]
    assert {run["state"] for arm in document["arms"] for run in arm["runs"]} == {"done"}
    assert control["metrics"]["train/loss"]["n"] == 2
    assert other["metrics"]["train/loss"]["verdict"] in ("better", "worse", "no_difference")
    assert document["planned"]["flops"] > 0
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert {row["arm"] for row in rows} == {"d_ff=32", "d_ff=40"}
    assert "<!doctype html>" in (folder / "report.html").read_text()

    code, output, _ = run_command(main, *flags, "--seeds=3", "--json")
    assert code == 0
    assert len(launcher.commands) == 6  # the finished runs are kept
    document = json.loads(output)
    assert document["arms"][0]["metrics"]["train/loss"]["n"] == 3

    code, _, error = run_command(main, *flags, "--seeds=3", "--config.train.batch_size=16")
    assert code == 2
    assert "holds another sweep: shared.train.batch_size was absent, is 16" in error


@pytest.mark.slow
def test_a_failed_run_is_named_and_tried_again_when_asked(run_command, config, launcher, tmp_path):
    folder, lost = tmp_path / "sweep", tmp_path / "tokens" / "train" / "part.npy"
    flags = [f"--config={config}", f"--workdir={folder}", GRID, "--seeds=2"]
    kept = lost.read_bytes()
    lost.unlink()
    code, _, error = run_command(main, *flags)
    assert code == 1
    assert "d_ff=32/seed6198 failed: error: " in error
    lost.write_bytes(kept)
    assert run_command(main, *flags)[0] == 1
    assert len(launcher.commands) == 4
    assert run_command(main, *flags, "--retry_failed")[0] == 0


def test_a_plan_trains_nothing_and_needs_no_folder(run_command, config, launcher):
    flags = [f"--config={config}", GRID, "--plan_only"]
    code, output, error = run_command(main, *flags, "--json")
    assert code == 0, error
    document = json.loads(output)
    assert document["planned"]["device_hours"] > 0
    assert [run["seed"] for run in document["arms"][0]["runs"]] == [6198, 6199, 6200]
    assert "6 runs" in error
    assert launcher.commands == []


def test_unequal_arms_are_refused_made_equal_or_taken(run_command, config):
    flags = [f"--config={config}", "--grid.train.duration=4 steps,8 steps", "--plan_only"]
    code, _, error = run_command(main, *flags)
    assert code == 2
    assert "duration=8_steps: 1,024 tokens, duration=4_steps has 512; --equal=tokens makes" in error
    assert run_command(main, *flags, "--unequal")[0] == 0
    flags = [f"--config={config}", GRID, "--config.train.duration=100 steps", "--plan_only"]
    code, output, _ = run_command(main, *flags, "--equal=flops")
    assert code == 0
    assert "equal over the arms: evaluation sets, flops, batch size\n" in output
    assert "not equal: d_ff=40: 11,648 tokens, d_ff=32 has 12,800" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --config and what is varied, or --sweep"),
        (["--config={config}", GRID], "--workdir is required"),
        (["--config={config}", "--plan_only"], "nothing is varied"),
        (["--config={config}", GRID, "--plan_only", "--seeds=1"], "--seeds=1: "),
        (["--config={config}", "--grid.model.dff=1,2", "--plan_only"], "--grid.model.dff: no such"),
        (["--config={config}", GRID, "--plan_only", "--jobs=0"], "--jobs=0: must be positive"),
        (["--config={config}", GRID, "--plan_only", "--target=h1"], "--target=h1: no such machine"),
        (["--sweep=qk", GRID, "--plan_only"], "--sweep says what is varied; leave out --grid"),
        (["--config={config}", GRID, "--plan_only", "--equl=time"], "Did you mean --equal?"),
    ],
)
def test_bad_input_is_one_line(run_command, config, flags, message):
    code, output, error = run_command(main, *(flag.format(config=config) for flag in flags))
    assert (code, output) == (2, "")
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")


def test_the_flags_are_read_without_jax():
    code = "import sys, jaxpretrain.sweep as s; s.make_parser(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
