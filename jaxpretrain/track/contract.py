"""What every tracker offers: a service that is checked first, and a run there that takes results.

A tracker is one file, `NAME_service.py`, whose `connect` returns a `Service`. Its package is an
extra of its name, which only that file imports.
"""

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

from jaxpretrain.config.errors import InputError, install, nearest
from jaxpretrain.config.serialize import Document, checked, read_object
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.storage.files import cache_dir
from jaxpretrain.storage.paths import is_remote
from jaxpretrain.storage.run_documents import SWEEP, SweepFile
from jaxpretrain.storage.staging import local_folder

TrackerName = Literal["wandb", "mlflow"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)
"""The names of all trackers."""
FOLDER = "trackers"
"""The folder in that of a run that holds the files of trackers, and what each of them has."""
PROJECT = "jaxpretrain"
"""The project, or experiment, of runs for which the environment names none."""


class Line(NamedTuple):
    """Numbers of a step, with the unix time at which they were written."""

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Identity:
    """A run among those of a tracker."""

    key: str
    """The identifier of the run, drawn once by this package."""
    name: str
    group: str
    """The name that it shares: of its sweep, else of its folder."""
    labels: Mapping[str, str]
    """The arm and the seed of a run of a sweep."""


class TrackedRun(Protocol):
    """A run that is open in a tracker; any method may fail in any way."""

    def config(self, document: Document) -> None:
        """Takes `experiment.json`; what it said before is replaced where the tracker can."""
        ...

    def lines(self, lines: Sequence[Line]) -> None:
        """Takes lines of metrics, in order."""
        ...

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
        """Takes a table whose cells are texts, numbers, booleans or None."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Takes a sample of the model."""
        ...

    def picture(self, step: int, name: str, file: Path) -> None:
        """Takes a PNG file of this machine."""
        ...

    def alert(self, finding: Finding) -> None:
        """Takes what stands out."""
        ...

    def artifact(self, file: Path) -> None:
        """Takes a file of this machine; it replaces one of the same name, or is a new version."""
        ...

    def close(self) -> None:
        """Waits until all is delivered."""
        ...


class Service(Protocol):
    """A tracker as the environment configures it."""

    @property
    def place(self) -> str:
        """The place that runs go to; at another one, a run begins from its first step."""
        ...

    def check(self) -> None:
        """Raises InputError where a key is missing or refused; else whatever fails."""
        ...

    def open(self, run: Identity) -> TrackedRun:
        """Opens a run, which may be there already."""
        ...


def connect(name: TrackerName, folder: Path) -> Service:
    """Returns a tracker whose files go to a folder of this machine; it asks nothing of it yet."""
    return importlib.import_module(f"jaxpretrain.track.{name}_service").connect(folder)


def files_of(workdir: Path) -> Path:
    """Returns the folder of this machine for the files of trackers, made where it is missing."""
    remote = is_remote(workdir)
    folder = cache_dir() / FOLDER / local_folder(workdir).name if remote else workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runs_of_sweep(folder: Path) -> dict[Path, dict[str, str]]:
    """Returns the folders of a sweep's runs with their arm and seed; {} where there is no sweep."""
    path = folder / SWEEP
    arms = checked(SweepFile, read_object(path), path).arms if path.exists() else ()
    return {
        folder / run.folder: {"arm": arm.name, "seed": str(run.seed)}
        for arm in arms
        for run in arm.runs
    }


def require_packages(names: Iterable[TrackerName], flag: str) -> None:
    """Raises InputError, which begins with the flag, where the package of a tracker is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{flag}={name}: the package {name} is missing: {install(name)}")


def parse_trackers(text: str, flag: str) -> tuple[TrackerName, ...]:
    """Returns the trackers in a list such as "wandb,mlflow"; InputError for another name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{flag}={text}: names no tracker; there are {', '.join(TRACKERS)}")
    for name in names:
        if name not in TRACKERS:
            hint = nearest(name, TRACKERS) or f" The trackers are {', '.join(TRACKERS)}."
            raise InputError(f"{flag}={text}: there is no tracker '{name}'.{hint}")
    return tuple(tracker for tracker in TRACKERS if tracker in names)
