"""The types in the JSON documents of a run's folder: `experiment.json` and `plan.json`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpretrain.config.documents import checked, read_object
from jaxpretrain.config.renames import upgraded

Document = dict[str, Any]
"""A JSON object, with the types that its kind of file names."""


@dataclass(frozen=True)
class SessionEntry:
    """A start of a run, as `experiment.json` lists it."""

    start: str | None = None
    """ISO time of the start."""
    first_step: int | None = None
    """Finished steps with which the session began."""
    command: tuple[str, ...] | None = None
    versions: dict[str, Any] | None = None
    git_revision: str | None = None
    devices: str | None = None


@dataclass(frozen=True)
class ExperimentFile:
    """What is read of an `experiment.json`."""

    config: dict[str, Any] = field(default_factory=dict)
    """The resolved config. Whoever needs a part of it checks that part: the rest may be of another
    version."""
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
    """What is read of a `plan.json`."""

    tokens_per_second: float | None = None
    images_per_second: float | None = None
    device_hours: float | None = None
    memory_bytes_per_device: int | None = None


def read_document(path: Path, kind: type) -> Document:
    """Returns the document in a file, with what it has beyond the fields of its kind.

    The config in it is as today's version writes it.

    Raises:
      InputError: the file is not there or no JSON object, or a field is missing or of another type.
    """
    document = read_object(path)
    checked(kind, document, path)
    if isinstance(document.get("config"), dict):
        document["config"] = upgraded(document["config"])
    return document
