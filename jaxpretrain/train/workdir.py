"""The folder of a run: who it belongs to, and the files that say so.

`experiment.json` names the run. Starting another run in its folder is refused, with the keys that
differ; what is not part of a run's identity may change when it goes on.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import diff, from_dict, to_dict
from jaxpretrain.data.files import write_atomically
from jaxpretrain.monitor.documents import ExperimentFile, read_document
from jaxpretrain.train.experiment import Experiment, identity_changes
from jaxpretrain.train.memory import Memory

_PACKAGES = ("jaxpretrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


@contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes of this machine from training in it.

    Raises:
      InputError: it cannot be made, or another process trains in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a")
    except OSError as error:
        raise InputError(f"--workdir={workdir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"--workdir={workdir}: another process trains in it") from None
        yield


def claim(workdir: Path, experiment: Experiment, *, allow_change: bool) -> list[str]:
    """Checks that `workdir` is free or holds this run; returns lines about accepted changes.

    Raises:
      InputError: the folder holds another run.
    """
    path = workdir / "experiment.json"
    if not path.exists():
        if any((workdir / "checkpoints").glob("*")):
            raise InputError(f"--workdir={workdir} has checkpoints but no experiment.json")
        return []
    saved = _load(path)["config"]
    changes = diff(saved, to_dict(experiment))
    identity, other = identity_changes(changes)
    if identity and not allow_change:
        shown = "; ".join(f"{p}: {a} there, {b} here" for p, a, b in identity[:6])
        more = f" and {len(identity) - 6} more" if identity[6:] else ""
        raise InputError(
            f"--workdir={workdir} holds another run ({shown}{more}); take another folder, or "
            "--allow_config_change to go on with the new values"
        )
    return [f"changed since the last start: {p} was {a}, is {b}" for p, a, b in identity + other]


def write_experiment(
    workdir: Path, experiment: Experiment, data_fingerprint: str, memory: Memory | None = None
) -> None:
    """Writes `experiment.json`: the resolved config, versions, git revision, what a step takes."""
    document = {
        "config": to_dict(experiment),
        "data_fingerprint": data_fingerprint,
        "devices": describe_devices(),
        "memory": None if memory is None else asdict(memory),
        "versions": {"python": platform.python_version(), **_versions()},
        "git_revision": _git_revision(),
        "command": sys.argv,
    }
    write_atomically(workdir / "experiment.json", json.dumps(document, indent=2) + "\n")


def read_experiment(workdir: Path) -> Experiment:
    """The experiment of a run's folder."""
    path = workdir / "experiment.json"
    return from_dict(Experiment, _load(path)["config"], f"{path}: config")


def trained_here(workdir: Path) -> Experiment | None:
    """The experiment of the folder when it was last run on devices like those at hand."""
    path = workdir / "experiment.json"
    if not path.exists() or _load(path).get("devices") != describe_devices():
        return None
    return read_experiment(workdir)


def describe_devices() -> str:
    """How many there are, and their kind."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def check_data(workdir: Path, data_fingerprint: str, *, allow_change: bool) -> None:
    """Refuses to go on with other data than the run began with.

    Raises:
      InputError: the fingerprint differs from the saved one.
    """
    path = workdir / "experiment.json"
    if not path.exists() or allow_change:
        return
    saved = _load(path).get("data_fingerprint")
    if saved != data_fingerprint:
        raise InputError(
            f"--workdir={workdir}: the data is not that of this run (fingerprint "
            f"{data_fingerprint}, was {saved}); --allow_config_change goes on with it"
        )


def keep_tokenizer(workdir: Path, tokenizer: Path | None) -> None:
    """Copies the tokenizer beside the checkpoints, so that the folder stands alone."""
    if tokenizer is not None:
        shutil.copyfile(tokenizer, workdir / ".tokenizer.tmp")
        os.replace(workdir / ".tokenizer.tmp", workdir / "tokenizer.json")


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"{path.parent} is no run: it has no experiment.json")
    document = read_document(path, ExperimentFile)
    if "config" not in document:
        raise InputError(f"{path}: config: is missing")
    return document


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
