"""Going back to an older checkpoint: newer ones, and their lines, move to `abandoned/`."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from jaxpretrain.checkpoints.orbax import finished_steps
from jaxpretrain.checkpoints.saving import move_aside
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import checked, read_object
from jaxpretrain.storage.files import write_atomically
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.storage.paths import names_in

ABANDONED = "abandoned"
"""The folder in that of a run that holds what it has gone back behind."""
_NOTE = "rewind.json"


@dataclass(frozen=True)
class Rewind:
    """One time that a run went back."""

    to_step: int
    """The step that it went back to."""
    from_step: int
    """The newest step that had a checkpoint or a line."""
    time: str
    """ISO time."""


def require_kept(workdir: Path, step: int) -> None:
    """Raises InputError, which names the nearest, where a step of a run has no checkpoint."""
    kept = finished_steps(workdir / "checkpoints")
    if step not in kept:
        steps = ", ".join(f"{one:,}" for one in kept)
        nearest = min(kept, key=lambda one: abs(one - step), default=None)
        hint = f"the nearest is {nearest}; it has {steps}" if kept else "it has none"
        raise InputError(f"--rewind_to={step}: {workdir} has no checkpoint of that step; {hint}")


def rewind(workdir: Path, step: int, logs: Iterable[str]) -> str | None:
    """Moves what comes after a step to a new folder in `abandoned/`; returns a line about it.

    `logs` are the names of `.jsonl` files; their later lines are copied, and the next start drops
    them. None where nothing comes after the step.
    """
    newer = [one for one in finished_steps(workdir / "checkpoints") if one > step]
    later = {
        name: [line for line in read_lines(workdir / name) if line["step"] > step] for name in logs
    }
    last = max([*newer, *(line["step"] for lines in later.values() for line in lines)], default=0)
    if last <= step:
        return None
    number = 1 + max((int(one.name) for one in _folders(workdir)), default=0)
    folder = workdir / ABANDONED / str(number)
    folder.mkdir(parents=True)
    for name, lines in later.items():
        if lines:
            write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines))
    note = Rewind(step, last, datetime.now(UTC).isoformat(timespec="seconds"))
    write_atomically(folder / _NOTE, json.dumps(asdict(note)) + "\n")
    for one in reversed(newer):  # an interrupted rewind can be made again
        move_aside(workdir / "checkpoints" / str(one), folder)
    steps = ", ".join(f"{one:,}" for one in newer)
    what = f"the checkpoints of step {steps}" if newer else f"the lines up to step {last:,}"
    return f"went back to step {step:,}: {what} are in {folder} now"


def read_rewinds(workdir: Path) -> list[Rewind]:
    """Returns the times that a run went back, in order."""
    found = []
    for folder in sorted(_folders(workdir), key=lambda one: int(one.name)):
        with suppress(InputError, OSError):
            found.append(checked(Rewind, read_object(folder / _NOTE), folder / _NOTE))
    return found


def _folders(workdir: Path) -> list[Path]:
    folder = workdir / ABANDONED
    return [folder / name for name in names_in(folder) if name.isdecimal()]
