"""Manifests agree with the models that are generated from the published schemas."""

import importlib
import re
import subprocess
from typing import Any

import pytest
import yaml

from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.chips import CHIPS
from jaxpretrain.launch.kubernetes import ACCELERATORS, run_manifest, sweep_manifest
from tests.launch.conftest import check_script, flags_of, training

GPU = ("--image=me/jax", "--accelerator=h100-80gb:4x8")
TPU = ("--image=me/jax", "--accelerator=2xtpu-v5p:4x4x4")


def run(*flags: str) -> Any:
    return yaml.safe_load(run_manifest(training(), flags_of("gke", *flags)))


def sweep(*flags: str, runs: int = 3) -> Any:
    trainings = [training(f"run {i}", f"--config.seed={i}") for i in range(runs)]
    return yaml.safe_load(sweep_manifest("qk", trainings, flags_of("gke", *flags)))


@pytest.mark.parametrize("flags", [GPU, TPU, ("--image=i", "--accelerator=tpu-v5e:2x4")])
def test_a_job_set_agrees_with_its_schema(flags: tuple[str, ...]):
    _require_valid(run(*flags), "jobset_v1alpha2_job_set", "JobsetV1alpha2JobSet")


def test_a_sweep_agrees_with_the_schema_of_jobs():
    _require_valid(
        sweep("--image=i", "--accelerator=h100:1"), "io_k8s_api_batch_v1_job", "IoK8sApiBatchV1Job"
    )


def _require_valid(manifest: Any, module: str, name: str) -> None:
    """Wrong types are errors of the model; unknown fields do not come back from it."""
    pytest.importorskip("kubeflow_trainer_api")
    model = getattr(importlib.import_module(f"kubeflow_trainer_api.models.{module}"), name)
    assert model.from_dict(manifest).to_dict() == manifest


def test_processes_on_gpus_are_told_where_to_meet():
    (workers,) = run(*GPU)["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (workers["replicas"], job["completions"], job["parallelism"]) == (1, 4, 4)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:5] == ["jaxpretrain", "launch", "local", "--once", "--"]
    assert container["command"][-3:] == [
        "--coordinator=it-s-nano-workers-0-0.it-s-nano:55527",
        "--num_processes=4",
        "--process_id=$(PROCESS_ID)",
    ]
    assert container["env"][0]["name"] == "PROCESS_ID"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


def test_slices_are_copies_of_a_job():
    manifest = run(*TPU)
    (workers,) = manifest["spec"]["replicatedJobs"]
    pod = workers["template"]["spec"]["template"]["spec"]
    assert (workers["replicas"], workers["template"]["spec"]["completions"]) == (2, 16)
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    assert not any("coordinator" in word for word in pod["containers"][0]["command"])
    assert "exclusive-topology" in str(manifest["metadata"]["annotations"])


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ("Container training for pod d/p failed with exit code 2 matching FailJob", "FailJobSet"),
        ("Container training for pod d/p failed with exit code 130 matching F", "FailJobSet"),
        ("Container training for pod d/p failed with exit code 75 matching F", "uncounted"),
        ("Pod d/p has condition DisruptionTarget matching FailJob rule at index 1", "uncounted"),
    ],
)
def test_the_message_of_a_failed_job_decides(message: str, action: str):
    spec = run(*GPU)["spec"]
    rules = [
        rule
        for rule in spec["failurePolicy"]["rules"]
        if any(re.search(p, message) for p in rule["onJobFailureMessagePatterns"])
    ]
    expected = {"uncounted": "RestartJobSetAndIgnoreMaxRestarts"}.get(action, action)
    assert [rule["action"] for rule in rules] == [expected]
    (on_codes, _) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert on_codes["onExitCodes"]["values"] == [2, 3, 75, 130]
    assert spec["failurePolicy"]["maxRestarts"] == 3


def test_each_pod_of_a_sweep_is_a_run_by_itself():
    manifest = sweep("--image=i", "--accelerator=h100:1", "--max_restarts=5")
    spec = manifest["spec"]
    assert (manifest["kind"], spec["completions"], spec["backoffLimitPerIndex"]) == ("Job", 3, 5)
    (shell, dash_c, script) = spec["template"]["spec"]["containers"][0]["command"]
    assert (shell, dash_c) == ("/bin/sh", "-c")
    check_script(f"#!/bin/sh\n{script}")
    played = f'jaxpretrain() {{ printf "%s\\n" "$@" "${{JOB_COMPLETION_INDEX-none}}"; }}\n{script}'
    command = ["sh", "-c", played.replace("exec ", "")]
    shown = subprocess.run(
        command, env={"JOB_COMPLETION_INDEX": "2"}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[4:] == [
        "--config=olmo_nano",
        "--workdir=/shared/it's run 2",
        "--config.seed=2",
        "none",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (GPU[1:], "--image is required"),
        (GPU[:1], "--accelerator is required"),
        (("--image=i", "--accelerator=h101:8"), "--accelerator=h101:8: no such machine"),
        (("--image=i", "--accelerator=cpu:8"), "--accelerator=cpu:8: GKE has a100-40gb, "),
    ],
)
def test_bad_flags_are_one_line(flags: tuple[str, ...], message: str):
    with pytest.raises(InputError, match=message):
        run(*flags)


def test_a_run_of_a_sweep_takes_one_node():
    with pytest.raises(InputError, match="a run of a sweep takes one node here"):
        sweep(*GPU)


def test_every_accelerator_of_the_table_is_on_gke():
    assert ACCELERATORS.keys() == CHIPS.keys()
