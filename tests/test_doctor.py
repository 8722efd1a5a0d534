import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from jaxpretrain import doctor
from jaxpretrain.inspection import machine

Usage = namedtuple("Usage", "total used free")


def test_it_says_what_is_here_and_that_training_can_start(capsys: pytest.CaptureFixture):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "8 x cpu (cpu), " in out
    assert "launcher     none; one process" in out
    assert out.endswith("verdict: ready to train\n")


def test_json_has_the_same(capsys: pytest.CaptureFixture):
    assert doctor.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == []
    assert document["devices"].startswith("8 x cpu")
    assert any(line.startswith("jax ") for line in document["packages"])


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 2**30, 2**30))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert f"problem: {Path.cwd()} has 1.0 GiB of free disk" in out
    assert out.endswith("verdict: not ready\n")


def test_a_launcher_that_jax_cannot_follow_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert doctor.main([]) == 1
    assert "problem: Open MPI started several processes" in capsys.readouterr().out


def test_an_accelerator_that_jax_does_not_use_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(machine, "_ACCELERATORS", {str(tmp_path / "nvidia0"): "gpu"})
    assert doctor.main([]) == 1
    assert "does not use: pip install 'jax[cuda13]', or check its driver" in capsys.readouterr().out
