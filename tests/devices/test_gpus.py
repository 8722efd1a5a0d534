import subprocess
from pathlib import Path

import pytest

from jaxpretrain.devices import gpus
from jaxpretrain.devices.gpus import count_gpus, gpu_ids, named_gpus

PRINTED = "0, GPU-8a11, NVIDIA H200\n1, GPU-8b22, NVIDIA H200\n"


def test_gpus_are_counted_without_a_driver(tmp_path: Path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert count_gpus({}, tmp_path) == 2
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "3,5,7"}, tmp_path) == 3
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0


def test_ids_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert gpu_ids({"CUDA_VISIBLE_DEVICES": "3, GPU-8a"}) == ["3", "GPU-8a"]
    assert gpu_ids({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setattr(gpus, "count_gpus", lambda environment: 2)
    assert gpu_ids({}) == ["0", "1"]


@pytest.mark.parametrize(
    ("allowed", "ids"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("", []),
        ("GPU-8a", ["GPU-8a"]),
        ("GPU-9", []),
    ],
)
def test_gpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch, allowed, ids):
    printed = subprocess.CompletedProcess([], 0, PRINTED, "")
    monkeypatch.setattr(gpus.subprocess, "run", lambda *args, **kwargs: printed)
    environment = {} if allowed is None else {"CUDA_VISIBLE_DEVICES": allowed}
    assert named_gpus(environment) == [(one, "NVIDIA H200") for one in ids]


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert named_gpus({}) == []
