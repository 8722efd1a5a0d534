"""The types in the JSON documents of the folders of runs and sweeps, such as `experiment.json`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import Document, checked, read_object
from jaxpretrain.storage.jsonl import has_lines
from jaxpretrain.storage.paths import names_in

METRICS = "metrics.jsonl"
"""The file that makes a folder a run."""
SWEEP = "sweep.json"
"""The file of a sweep's folder with its plan, the states of its runs, and its answer."""


REPLAYS = "replays"
"""The folder of the kept replays in the folder of a run."""
REPLAY = "replay.json"
"""The file of a replay with what was found."""


@dataclass(frozen=True)
class SessionEntry:
    """One start of a run, in the list in `experiment.json`."""

    start: str | None = None
    """ISO time of the start."""
    first_step: int | None = None
    """Number of steps that were finished when the session began."""
    command: tuple[str, ...] | None = None
    versions: dict[str, Any] | None = None
    git_revision: str | None = None
    devices: str | None = None


@dataclass(frozen=True)
class ExperimentFile:
    """The fields of `experiment.json` that are read."""

    config: dict[str, Any] = field(default_factory=dict)
    """The resolved config; each reader checks its part: the rest may be of another version."""
    data_fingerprint: str | None = None
    data_description: str | None = None
    eos_id: int | None = None
    last_saved: int | None = None
    sessions: tuple[SessionEntry, ...] | None = None
    devices: str | None = None
    memory: dict[str, int] | None = None
    """Bytes of the compiled step, by part."""
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanFile:
    """The fields of `plan.json` that are read."""

    tokens_per_second: float | None = None
    images_per_second: float | None = None
    device_hours: float | None = None
    memory_bytes_per_device: int | None = None


@dataclass(frozen=True)
class Baseline:
    """A simple model of the data, measured as a run is."""

    name: str
    nats_per_token: float | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class BaselinesFile:
    """The fields of `baselines.json` that are read."""

    rows: tuple[Baseline, ...] = ()


@dataclass(frozen=True)
class PredictedScore:
    """A metric of a task that was predicted, with the ends of its interval."""

    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PredictionFile:
    """The fields of `prediction.json` that are read."""

    metric: str
    """The loss that is predicted."""
    loss: float
    low: float
    high: float
    time: str
    """ISO time at which it was predicted."""
    points: str
    """The SHA-256 of the points that it follows from."""
    extrapolation: float
    """The FLOPs of the run, relative to those of the largest point."""
    parameters: float | None = None
    """The parameters of the run that is predicted, without the embedding."""
    tokens: float | None = None
    """The tokens of all its steps."""
    last: int = 1
    """The number of last values whose mean is the measured loss."""
    hindcast: bool = False
    """True where the run had begun before."""
    scores: tuple[PredictedScore, ...] = ()


@dataclass(frozen=True)
class ReplayFile:
    """The fields of `replay.json` that are read."""

    steps: tuple[int, int]
    """The first and the last step."""
    proof: Document
    notes: tuple[str, ...] = ()
    suspects: tuple[Document, ...] = ()
    metrics: tuple[Document, ...] = ()
    files: tuple[Document, ...] = ()
    sources: tuple[Document, ...] = ()
    documents: tuple[Document, ...] = ()
    examples: tuple[Document, ...] = ()
    closer: tuple[Document, ...] = ()
    """The examples with the loss of each token or patch."""
    arms: tuple[Document, ...] = ()
    against: tuple[str, ...] | None = None
    """Lines about another run that parts from this one."""


@dataclass(frozen=True)
class RunOfSweep:
    """A run in `sweep.json`."""

    folder: str
    seed: int
    state: str = "waiting"


@dataclass(frozen=True)
class ArmOfSweep:
    """An arm in `sweep.json`."""

    name: str
    runs: tuple[RunOfSweep, ...]
    overrides: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SweepFile:
    """The fields of `sweep.json` that are read again."""

    config: str
    control: str
    shared: tuple[tuple[str, str], ...] = ()
    equal_by: str | None = None
    arms: tuple[ArmOfSweep, ...] = ()


def runs_in(folder: Path, below: Iterable[Path] = ()) -> list[Path]:
    """Returns a folder that is a run, or else the runs among some below it, by default its own."""
    if has_lines(folder / METRICS):
        return [folder]
    inside = list(below) or [folder / name for name in names_in(folder)]
    return [path for path in inside if has_lines(path / METRICS)]


def read_document(path: Path, kind: type) -> Document:
    """Returns the document in a file, with all its fields; those of its kind have the right types.

    The config in it is upgraded to what today's version writes. Raises InputError where the file is
    not there or no JSON object, or a field is missing or of another type.
    """
    document = read_object(path)
    checked(kind, document, path)
    if isinstance(document.get("config"), dict):
        document["config"] = upgraded(document["config"])
    return document
