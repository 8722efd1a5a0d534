"""The program that started this process among others, read off its environment."""

import importlib.util
import re
from collections.abc import Mapping
from typing import NamedTuple

from jax._src import cloud_tpu_init  # no public name tells a TPU host before its backend starts

from jaxpretrain.config.errors import InputError

# In the script of a batch job, outside of srun, there is no list of the step's nodes. A shell that
# was reached by ssh may have some of the names, and is no part of a step.
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
_SLICES = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")


class Launcher(NamedTuple):
    """The program that started the processes, and its name in JAX; None: JAX finds them itself."""

    name: str
    method: str | None


def find_launcher(environment: Mapping[str, str]) -> Launcher | None:
    """Returns the launcher that started this process among others; None where it is alone.

    Raises InputError where Open MPI started several, but in a way that JAX cannot follow.
    """
    if _number(environment, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return Launcher("Open MPI", "ompi")
        raise InputError(
            "Open MPI started several processes, but (as from version 5 on) names no address to "
            "meet at; add --coordinator=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
            "--process_id=$OMPI_COMM_WORLD_RANK"
        )
    if environment.keys() >= {*_SLURM_STEP, "SLURM_LOCALID"}:
        # JAX and `local_gpus` read the last two as numbers, too.
        names = ("NTASKS", "PROCID", "JOB_ID", "LOCALID")
        count, place, _, _ = (_number(environment, f"SLURM_{name}", 0) for name in names)
        if place >= count:
            raise InputError(
                f"SLURM_PROCID={place} is no place among SLURM_NTASKS={count}: they are of another "
                "job; unset SLURM_PROCID, or start the command by srun"
            )
        if count > 1:
            return Launcher("SLURM", "slurm")
    if cloud_tpu_init.running_in_cloud_tpu_vm:
        hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
        if hosts is not None:
            several = "," in hosts or _number(environment, "MEGASCALE_NUM_SLICES", 1) > 1
            return Launcher("GKE on TPU", "gketpu") if several else None
        if "TPU_SKIP_MDS_QUERY" not in environment:
            return Launcher("Cloud TPU", "gcetpu")
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        if importlib.util.find_spec("kubernetes") is None:
            raise InputError(
                "an indexed Kubernetes job needs the package kubernetes, by which JAX finds the "
                "other processes: pip install 'jax[k8s]', or give --coordinator, --num_processes "
                "and --process_id"
            )
        return Launcher("Kubernetes", None)
    return None


def require_consistent(environment: Mapping[str, str], launcher: Launcher | None) -> None:
    """Refuses variables of another job, which would let this process wait for others in vain.

    `launcher` is what `find_launcher` returned. Raises InputError, which names the variables.
    """
    by = f"the processes are started by {launcher.name}" if launcher else "no launcher is found"
    if address := environment.get("JAX_COORDINATOR_ADDRESS"):
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS={address}, but {by}: unset it, or give --coordinator, "
            "--num_processes and --process_id, which override it"
        )
    given = [name for name in _SLICES if name in environment]
    if not given:
        return
    if len(given) < len(_SLICES):
        missing = " and ".join(name for name in _SLICES if name not in given)
        raise InputError(f"{given[0]} is set without {missing}: unset it, or set all of them")
    slices, place = (_number(environment, name, 0) for name in _SLICES[1:])
    if place >= slices:
        raise InputError(f"MEGASCALE_SLICE_ID={place} is none of MEGASCALE_NUM_SLICES={slices}")
    if slices > 1 and (launcher is None or launcher.method not in ("gketpu", "gcetpu")):
        raise InputError(
            f"MEGASCALE_NUM_SLICES={slices} is for the hosts of several TPU slices, but {by}: it "
            f"is of another job; unset {', '.join(_SLICES)}"
        )


def named_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Returns the devices that `JAX_LOCAL_DEVICE_IDS` names; None where it is not set.

    Raises InputError where it is no list of numbers, which JAX would end with a traceback.
    """
    text = environment.get("JAX_LOCAL_DEVICE_IDS")
    if not text:
        return None
    if not all(one.strip().isdecimal() for one in text.split(",")):
        raise InputError(f"JAX_LOCAL_DEVICE_IDS={text}: must be numbers, such as 0,1")
    return [int(one) for one in text.split(",")]


def local_gpus(environment: Mapping[str, str], num_visible: int) -> list[int] | None:
    """Returns the numbers of this process's GPUs among those it sees; None where all are its own.

    SLURM and Open MPI say how many processes share the host; these divide its GPUs in order. A
    process that sees fewer GPUs than its step has on the node was given its own. Raises InputError
    where the processes cannot have equally many.
    """
    rank = environment.get("SLURM_LOCALID", environment.get("OMPI_COMM_WORLD_LOCAL_RANK"))
    if rank is None or not num_visible or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if "SLURM_LOCALID" in environment:
        layout = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        sharing = layout[min(_number(environment, "SLURM_NODEID", 0), len(layout) - 1)]
    else:
        sharing = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 1)
    if num_visible < max(sharing, _number(environment, "SLURM_GPUS_ON_NODE", 0)):
        return None
    share, rest = divmod(num_visible, sharing)
    if rest:
        raise InputError(
            f"{num_visible} GPUs do not divide over the {sharing} processes of this host: start "
            "another number, or name those of each process: JAX_LOCAL_DEVICE_IDS=0,1"
        )
    return list(range(int(rank) * share, (int(rank) + 1) * share))


def _tasks_per_node(text: str) -> list[int]:
    """Reads SLURM's list of tasks on each node, such as 8(x3),4."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))] or [1]


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name}={text}: must be a number; unset it, or start by the launcher")
    return int(text)
