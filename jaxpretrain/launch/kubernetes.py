"""Manifests for Kubernetes on GKE: a JobSet for a run over many nodes, an indexed Job for a sweep.

Each container runs `launch local --once`, which tells Kubernetes by an exit code whether there was
progress; the policies in a manifest map the codes to restarts. docs/distributed.md explains them.
"""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from jaxpretrain.config.command import EXIT_STOPPED
from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.machines import nodes_of, read_accelerator
from jaxpretrain.launch.rules import codes_of
from jaxpretrain.launch.training import Training
from jaxpretrain.planning.machines import Target

Manifest = dict[str, Any]

ACCELERATORS = {
    "a100-40gb": "nvidia-tesla-a100",
    "a100-80gb": "nvidia-a100-80gb",
    "h100-80gb": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
    "tpu-v5e": "tpu-v5-lite-podslice",
    "tpu-v5p": "tpu-v5p-slice",
    "tpu-v6e": "tpu-v6e-slice",
}
"""Name of a chip in `plan --target` -> its name in the labels of GKE's nodes."""
_PORT = 55527
_NEVER = codes_of("never", failures_only=True)
_DISRUPTED = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
"""The condition of a pod that its node, and no fault of its own, has ended."""
_RUN = ["jaxpretrain", "launch", "local", "--once", "--"]


def run_manifest(training: Training, flags: Namespace) -> str:
    """Returns the JobSet of a run, as YAML; `flags` are those of `add_engine_flags`.

    Raises:
      InputError: the machine is not known, or is none of GKE's.
    """
    target = _target(flags)
    nodes, _ = nodes_of(target)
    arguments = [*_RUN, *training.flags]
    if target.platform == "gpu" and nodes > 1:  # on TPUs, JAX asks GKE
        first = f"{training.name}-workers-0-0.{training.name}"
        arguments += [f"--coordinator={first}:{_PORT}", f"--num_processes={nodes}"]
        arguments += ["--process_id=$(PROCESS_ID)"]
    # Any failed pod fails the Job, and the JobSet starts all of them anew, by the Job's message.
    job = _job(nodes) | {
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                _on_codes("FailJob", [*_NEVER, EXIT_STOPPED]),
                {"action": "FailJob", **_DISRUPTED},
            ]
        },
        "template": _pod(target, arguments, flags),
    }
    codes = "|".join(map(str, _NEVER))
    by_policy = {"onJobFailureReasons": ["PodFailurePolicy"]}
    free = [f"exit code {EXIT_STOPPED} ", "DisruptionTarget"]
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": training.name},
        "spec": {
            "failurePolicy": {
                "maxRestarts": flags.max_restarts,
                "rules": [
                    {
                        "name": "never",
                        "action": "FailJobSet",
                        **by_policy,
                        "onJobFailureMessagePatterns": [f"exit code ({codes}) "],
                    },
                    {
                        "name": "uncounted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        **by_policy,
                        "onJobFailureMessagePatterns": free,
                    },
                ],
            },
            "replicatedJobs": [
                {"name": "workers", "replicas": target.num_slices, "template": {"spec": job}}
            ],
        },
    }
    if target.platform == "tpu":  # a slice is a pool of nodes
        pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        manifest["metadata"]["annotations"] = pool
    return _to_yaml(manifest)


def sweep_manifest(name: str, trainings: Sequence[Training], flags: Namespace) -> str:
    """Returns the indexed Job of runs on a node each, as YAML.

    Raises:
      InputError: the machine is not known, is none of GKE's, or has several nodes.
    """
    target = _target(flags)
    nodes, _ = nodes_of(target)
    if nodes * target.num_slices > 1:
        raise InputError(f"--accelerator={target.name}: a run of a sweep takes one node here")
    cases = "\n".join(f"  {i}) set -- {t.quoted} ;;" for i, t in enumerate(trainings))
    script = (
        "index=$JOB_COMPLETION_INDEX\n"
        "unset JOB_COMPLETION_INDEX  # each pod is a run of its own, no process of a larger one\n"
        f'case $index in\n{cases}\nesac\nexec {" ".join(_RUN)} "$@"\n'
    )
    job = _job(len(trainings)) | {
        "backoffLimitPerIndex": flags.max_restarts,
        "podFailurePolicy": {
            "rules": [
                _on_codes("FailIndex", _NEVER),
                _on_codes("Ignore", [EXIT_STOPPED]),
                {"action": "Ignore", **_DISRUPTED},
            ]
        },
        "template": _pod(target, ["/bin/sh", "-c", script], flags),
    }
    metadata = {"name": name}
    return _to_yaml({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job})


def _on_codes(action: str, codes: list[int]) -> Manifest:
    requirement = {"containerName": "training", "operator": "In", "values": sorted(codes)}
    return {"action": action, "onExitCodes": requirement}


def _job(completions: int) -> Manifest:
    return {"completions": completions, "parallelism": completions, "completionMode": "Indexed"}


def _pod(target: Target, command: list[str], flags: Namespace) -> Manifest:
    """Returns the template of the pods: one container, with all accelerators of its node."""
    assert target.chip is not None
    _, per_node = nodes_of(target)
    selector = {"cloud.google.com/gke-accelerator": ACCELERATORS[target.chip.name]}
    if target.platform == "tpu":
        topology = "x".join(map(str, target.shape))
        selector = {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[target.chip.name],
            "cloud.google.com/gke-tpu-topology": topology,
        }
    resource = "google.com/tpu" if target.platform == "tpu" else "nvidia.com/gpu"
    index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    container = {
        "name": "training",
        "image": flags.image,
        "command": command,
        "env": [{"name": "PROCESS_ID", "valueFrom": {"fieldRef": index}}],
        "resources": {"limits": {resource: per_node}},
        # NCCL and readers of data exchange through shared memory, of which pods have 64 MB.
        "volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}],
    }
    return {
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": flags.notice,
            "nodeSelector": selector,
            "containers": [container],
            "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
        }
    }


def _target(flags: Namespace) -> Target:
    if not flags.image:
        raise InputError("--image is required: the container image, with jaxpretrain installed")
    if not flags.accelerator:
        raise InputError(
            "--accelerator is required: a machine as plan --target writes it, such as "
            "h100-80gb:2x8 or tpu-v5p:4x4x4"
        )
    return read_accelerator(flags, "GKE", ACCELERATORS)


def _to_yaml(manifest: Manifest) -> str:
    import yaml  # takes a moment

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as they are, and nothing by reference."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent)
    return yaml.dump(manifest, Dumper=Dumper, sort_keys=False, width=100)
