"""From the flags of `launch` to an engine: what it gets, printed, submitted or run."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch import kubernetes, slurm, tpu_vm
from jaxpretrain.launch.clients import GCLOUD, KUBECTL, SBATCH, deliver
from jaxpretrain.launch.flags import require_sensible
from jaxpretrain.launch.local import run_local
from jaxpretrain.launch.machines import num_devices_of
from jaxpretrain.launch.training import check_training
from jaxpretrain.storage.paths import is_remote


def launch(flags: Namespace, training_flags: Sequence[str]) -> int:
    """Prints what an engine gets, submits it or, on this machine, runs it; returns the exit code.

    Raises:
      InputError: a flag is wrong, of the launch or of the training, or the client is missing.
    """
    require_sensible(flags)
    if flags.engine == "local":
        if flags.processes < 1:
            raise InputError(f"--processes={flags.processes}: must be positive")
        return run_local(
            check_training(training_flags, has_place=flags.processes == 1),
            num_processes=flags.processes,
            max_restarts=flags.max_restarts,
            once=flags.once,
        )
    training = check_training(training_flags, num_devices=num_devices_of(flags))
    if flags.engine != "slurm":
        _require_shared(training.workdir, flags.engine)
    if flags.engine == "slurm":
        text, client = slurm.write_script(training.name, [training], flags), SBATCH
    elif flags.engine == "gke":
        text, client = kubernetes.run_manifest(training, flags), KUBECTL
    else:
        text, client = tpu_vm.write_script(training, flags), GCLOUD
    return deliver(text, client, is_submitted=flags.submit)


def _require_shared(workdir: Path, engine: str) -> None:
    """Raises InputError for a folder that lies on the disk of a pod or of a VM, which is lost."""
    if not (is_remote(workdir) or workdir.is_absolute()):
        raise InputError(
            f"--workdir={workdir}: on {engine} this is a folder of one machine, which is lost at "
            "each restart; give a bucket, gs://BUCKET/RUN, or the absolute path of a shared disk"
        )
