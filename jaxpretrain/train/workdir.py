"""The folder of a run: the run that owns it, and the files that say so.

`experiment.json` names the run. Starting another run in its folder is refused, with the keys that
differ; fields that are not part of a run's identity may change when it goes on.
"""

import fcntl
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import gcd
from pathlib import Path

import jax

from jaxpretrain.checkpoints.orbax import finished_steps
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import ABSENT, Change, Document, diff, from_dict, to_dict
from jaxpretrain.storage.files import atomic_file, write_atomically
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.storage.lease import leased
from jaxpretrain.storage.paths import is_remote, names_in
from jaxpretrain.storage.run_documents import ExperimentFile, read_document
from jaxpretrain.train.experiment import Experiment, Resolved, identity_changes
from jaxpretrain.train.program import Memory

_PACKAGES = ("jaxpretrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


@contextmanager
def lock(workdir: Path) -> Iterator[Callable[[], None]]:
    """Makes the folder, and keeps other processes from training in it.

    Yields a function that raises OSError where another process has taken it in spite of that, which
    is possible in a bucket alone; of a folder on a disk, processes of this machine are kept out.
    Raises InputError where it cannot be made, or another process trains in it.
    """
    if is_remote(workdir):
        if workdir.is_file():
            raise InputError(f"--workdir={workdir}: is a file; name a folder, or what is to be one")
        with leased(workdir) as lease:
            yield lease.check
        return
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
        yield lambda: None


def has_run(workdir: Path) -> bool:
    """Returns True where a run has been in the folder."""
    return _path(workdir).exists()


def check_owner(workdir: Path, experiment: Experiment, *, allow_change: bool) -> list[str]:
    """Returns lines about accepted changes; InputError where the folder holds another run."""
    if _find(workdir) is None:
        if names_in(workdir / "checkpoints"):
            raise InputError(f"--workdir={workdir} has checkpoints but no experiment.json")
        return []
    changes = diff(saved_document(workdir)["config"], to_dict(experiment))
    changes = [change for change in changes if not _is_of_group(change, changes)]
    identity, other = identity_changes(changes)
    if identity and not allow_change:
        shown = "; ".join(f"{p}: {a} there, {b} here" for p, a, b in identity[:6])
        more = f" and {len(identity) - 6} more" if identity[6:] else ""
        raise InputError(
            f"--workdir={workdir} holds another run ({shown}{more}); take another folder, or "
            "--allow_config_change to go on with the new values"
        )
    return [f"changed since the last start: {p} was {a}, is {b}" for p, a, b in identity + other]


def _is_of_group(change: Change, changes: list[Change]) -> bool:
    """Returns true where other changes name the parts of the same group."""
    path, *sides = change
    return ABSENT in sides and any(other.startswith(f"{path}.") for other, _, _ in changes)


def kept_before(
    workdir: Path, experiment: Resolved, given: Collection[str]
) -> tuple[Resolved, list[str]]:
    """Returns an experiment that keeps all checkpoints that the folder's last session kept.

    A field among the `given` paths stays as it is. Also returns lines about checkpoints that are
    kept against the config.
    """
    document, kept = _find(workdir), experiment.checkpoint
    if document is None:
        return experiment, []
    stored = document["config"].get("checkpoint", {})
    last, every = stored.get("keep_last", kept.keep_last), stored.get("keep_every")
    if "checkpoint.keep_last" not in given and kept.keep_last is not None:
        kept = replace(kept, keep_last=None if last is None else max(last, kept.keep_last))
    if "checkpoint.keep_every" not in given:
        # Multiples of either number are multiples of their greatest common divisor.
        common = gcd(every or 0, experiment.timeline.keep_every or 0)
        kept = replace(kept, keep_every=common or None)
    lines = [
        f"checkpoint.{name} is {now}, as in the last session, and not {configured}: no checkpoint "
        f"that it kept is deleted; --config.checkpoint.{name}={configured} changes it"
        for name, configured, now in (
            ("keep_last", experiment.checkpoint.keep_last, kept.keep_last),
            ("keep_every", experiment.checkpoint.keep_every or None, kept.keep_every),
        )
        if configured != now
    ]
    return replace(experiment, checkpoint=kept), lines


def write_experiment(
    workdir: Path,
    experiment: Experiment,
    data_fingerprint: str,
    memory: Memory | None = None,
    *,
    eos_id: int | None = None,
    data_description: str | None = None,
    first_step: int | None = None,
    last_saved: int | None = None,
) -> None:
    """Writes `experiment.json`, and keeps the sessions in it.

    A session begins with `first_step` finished steps; None: no session begins. `last_saved` is the
    step of the newest checkpoint.
    """
    sessions = _sessions(workdir)
    if first_step is not None:
        start = datetime.now(UTC).isoformat(timespec="seconds")
        sessions = [*sessions, {"start": start, "first_step": first_step, **describe_program()}]
    document = {
        "config": to_dict(experiment),
        "data_fingerprint": data_fingerprint,
        "data_description": data_description,
        "eos_id": eos_id,
        "memory": None if memory is None else asdict(memory),
        "last_saved": last_saved,
        **describe_program(),
        "sessions": sessions,
    }
    _write(workdir, document)


def note_saved(workdir: Path, step: int) -> None:
    """Notes in `experiment.json` that a step is saved, so that a loss is noticed later."""
    with suppress(OSError, InputError):  # a note is not worth the run, whose state is saved
        if (document := _find(workdir)) is not None:
            _write(workdir, document | {"last_saved": step})


def describe_program() -> Document:
    """Returns the command, the versions of packages, the git revision and the devices."""
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **installed_versions(_PACKAGES)},
        "git_revision": _git_revision(),
        "devices": describe_devices(),
    }


def program_changes(workdir: Path, step: int | None = None) -> list[str]:
    """Returns a line about versions and devices that differ from the last session in the folder.

    With a `step`, from the session that made it.
    """
    there, here, what = _find(workdir), describe_program(), "ran last in this folder"
    if there is None:
        return []
    if step is not None:
        made = (one for one in reversed(_sessions(workdir)) if (one["first_step"] or 0) < step)
        there, what = next(made, there), f"made step {step:,}"
    changes = [
        change
        for name in ("versions", "git_revision", "devices")
        for change in diff({name: there.get(name)}, {name: here[name]})
    ]
    shown = "; ".join(f"{path} was {was}, is {now}" for path, was, now in changes)
    return [f"not what {what}: {shown}"] if changes else []


def require_nothing_lost(workdir: Path) -> None:
    """Raises InputError where there were checkpoints, and they are gone.

    A run that ended before its first save has no checkpoints either, and begins again.
    """
    if finished_steps(workdir / "checkpoints"):
        return
    step = _steps_known(workdir)
    if step is None:
        return
    aside = ", ".join(map(str, finished_steps(workdir / "corrupt")))
    damaged = f" ({workdir / 'corrupt'} has damaged ones, of step {aside})" if aside else ""
    raise InputError(
        f"--workdir={workdir} holds a run that got to step {step}, and {workdir / 'checkpoints'} "
        f"has no checkpoint now{damaged}; nothing was changed. Put a checkpoint back to go on; to "
        "begin again, take another folder or delete this one"
    )


def read_experiment(workdir: Path) -> Resolved:
    """Returns the experiment of a run's folder."""
    return from_dict(Resolved, _load(workdir)["config"], f"{_path(workdir)}: config")


def read_eos_id(workdir: Path) -> int | None:
    """Returns the token that ends the documents of the run's data; None where it is not known."""
    return _load(workdir).get("eos_id")  # folders of older versions have none


def trained_here(workdir: Path) -> Resolved | None:
    """Returns the experiment of the folder where it last ran on devices like those at hand."""
    document = _find(workdir) or {}
    return read_experiment(workdir) if document.get("devices") == describe_devices() else None


def saved_document(workdir: Path) -> Document:
    """Returns `experiment.json` with defaults for what its config lacks; InputError without one."""
    document = _load(workdir)
    with suppress(InputError):  # one of another version is compared as it is
        document["config"] = to_dict(from_dict(Experiment, document["config"]))
    return document


@functools.cache
def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    versions = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def describe_devices() -> str:
    """Returns the number and the kind of the devices at hand."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def check_data(
    workdir: Path,
    experiment: Experiment,
    data_fingerprint: str,
    data_description: str,
    *,
    allow_change: bool,
) -> None:
    """Raises InputError where the fingerprint is not that of the data that the run began with."""
    if _find(workdir) is None or allow_change:
        return
    saved = saved_document(workdir)
    if saved.get("data_fingerprint") == data_fingerprint:
        return
    here, there = ({"data": c["data"]} for c in (to_dict(experiment), saved["config"]))
    changes = [f"{path} is {b}, was {a}" for path, a, b in diff(there, here)]
    if not changes:
        roots = (row for row in diff({}, here) if row[0].endswith((".root", ".data_dir")))
        changes = [f"{path} is {b}, as before" for path, _, b in roots if b is not None]
    raise InputError(
        f"--workdir={workdir}: the data is not that of this run: {'; '.join(changes)}; it holds "
        f"[{data_description}], was [{saved.get('data_description') or 'not written down'}]; "
        f"fingerprint {data_fingerprint}, was {saved.get('data_fingerprint')}. Give the data of "
        "before, or --allow_config_change to go on with this"
    )


def keep_tokenizer(workdir: Path, tokenizer: Path | None) -> None:
    """Copies the tokenizer beside the checkpoints, so that the folder stands alone."""
    if tokenizer is not None:
        with atomic_file(workdir / "tokenizer.json") as file:
            file.write(tokenizer.read_bytes())


def _sessions(workdir: Path) -> list[Document]:
    """Returns the sessions in `experiment.json`; older folders only know the last one."""
    document = _find(workdir) or {"sessions": []}
    if (sessions := document.get("sessions")) is not None:
        return sessions
    modified = datetime.fromtimestamp(_path(workdir).stat().st_mtime, UTC)
    lines = read_lines(workdir / "metrics.jsonl")
    marks = [line["step"] for line in lines if "run/num_devices" in line]
    known = {name: document.get(name) for name in describe_program()}
    start = modified.isoformat(timespec="seconds")
    return [{"start": start, "first_step": max(marks, default=0), **known}]


def _steps_known(workdir: Path) -> int | None:
    """Returns a step that must have had a checkpoint; None where there may have been none."""
    document = _find(workdir) or {}
    aside = max(finished_steps(workdir / "corrupt"), default=None)
    if "last_saved" in document:
        return aside if document["last_saved"] is None else document["last_saved"]
    # Older folders do not say what was saved, but how often.
    trained = max((line["step"] for line in read_lines(workdir / "metrics.jsonl")), default=0)
    config = saved_document(workdir)["config"] if document else None
    is_gone = trained > 0 and not (workdir / "checkpoints").is_dir()
    if config is None or is_gone:
        return trained or aside
    duration = config["train"]["duration"]
    every = config["checkpoint"]["every"]
    first_save = min(every, duration) if isinstance(every, int) and every else duration
    return trained if trained >= first_save else aside


def _path(workdir: Path) -> Path:
    return workdir / "experiment.json"


def _find(workdir: Path) -> Document | None:
    """Returns the document `experiment.json`; None where there is none."""
    if not has_run(workdir):
        return None
    document = read_document(_path(workdir), ExperimentFile)
    if "config" not in document:
        raise InputError(f"{_path(workdir)}: config: is missing")
    return document


def _load(workdir: Path) -> Document:
    if (document := _find(workdir)) is None:
        raise InputError(f"{workdir} is no run: it has no experiment.json")
    return document


def _write(workdir: Path, document: Document) -> None:
    write_atomically(_path(workdir), json.dumps(document, indent=2) + "\n")


@functools.cache
def _git_revision() -> str | None:
    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
