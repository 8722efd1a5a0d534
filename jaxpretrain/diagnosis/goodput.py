"""Where the time of a run went, over all of its starts and the pauses between them.

Goodput is the share of the time since the first start that went into steps that counted. The rest
is told by cause, and all of it adds up to the time that has passed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import checked, read_object
from jaxpretrain.display.wording import format_seconds

SESSIONS = "sessions.json"
"""The file of a run's folder with the times of its starts."""
STEPS = "steps"
CAUSES = (
    STEPS,
    "start",
    "rendezvous",
    "restore",
    "compile",
    "data wait",
    "evaluation",
    "save stall",
    "lost steps",
    "stall",
    "idle",
)
"""The causes that time is counted under, productive steps first."""
_PARTS = {
    "compile": "compile",
    "data_wait": "data wait",
    "eval": "evaluation",
    "save": "save stall",
}
"""Part of the clock -> cause."""


@dataclass(frozen=True)
class Session:
    """The times of one start of a run, as its first process has seen them."""

    started: float
    """Unix time at which the process began."""
    rendezvous: float = 0.0
    """Seconds in which the processes have met."""
    restore: float = 0.0
    """Seconds in which the newest checkpoint was read."""
    clock: dict[str, float] = field(default_factory=dict)
    """Seconds by part of the run's clock at the start, as restored."""
    ended: float = 0.0
    """Unix time of the last sign of life."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by part of the run's clock then."""
    stalled: float = 0.0
    """Seconds between that and the end by the watchdog; 0 where it did not end the session."""


@dataclass(frozen=True)
class _File:
    """The fields of the file."""

    sessions: tuple[Session, ...] = ()


@dataclass(frozen=True)
class Goodput:
    """The seconds of a run by cause."""

    seconds: Mapping[str, float]

    @property
    def wall(self) -> float:
        """The seconds since the first start."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """The share of the time that went into steps that counted."""
        return self.seconds[STEPS] / self.wall if self.wall > 0 else 0.0

    def describe(self) -> str:
        """Returns one line: the share, and what the rest of the time went into, most first."""
        rest = {name: x for name, x in self.seconds.items() if name != STEPS and x > 0}
        causes = sorted(rest.items(), key=lambda item: -item[1])
        parts = [f"{name} {x / self.wall:.1%}" for name, x in causes if x >= 0.001 * self.wall]
        return (
            f"{self.share:.1%} of {format_seconds(self.wall)} since the first start went into "
            f"steps that counted; {', '.join(parts) or 'nothing else took time'}"
        )


def goodput(sessions: Sequence[Session]) -> Goodput | None:
    """Returns where the time of all sessions went, in order; None without any."""
    if not sessions:
        return None
    spent: dict[str, float] = {cause: 0.0 for cause in CAUSES}
    after: Session | None = None
    kept = math.inf  # seconds of steps of all sessions, behind which no later start went back
    for session in reversed(sessions):
        own = {k: x - session.clock.get(k, 0.0) for k, x in session.seconds.items()}
        lost = min(max(_steps(session.seconds) - kept, 0.0), _steps(own))
        for part, cause in _PARTS.items():
            spent[cause] += own.get(part, 0.0)
        share = lost / _steps(own) if lost else 0.0
        spent["data wait"] -= share * own.get("data_wait", 0.0)
        spent["lost steps"] += lost
        spent[STEPS] += (1 - share) * own.get("train", 0.0)
        spent["rendezvous"] += session.rendezvous
        spent["restore"] += session.restore
        lived = max(session.ended - session.started, 0.0)
        known = sum(own.get(part, 0.0) for part in (*_PARTS, "train"))
        spent["start"] += max(lived - known - session.rendezvous - session.restore, 0.0)
        spent["stall"] += session.stalled
        if after is not None:
            spent["idle"] += max(after.started - session.ended - session.stalled, 0.0)
        after, kept = session, min(kept, _steps(session.clock))
    return Goodput(spent)


def read_sessions(workdir: Path) -> list[Session]:
    """Returns the sessions of a run's folder; none where the file is missing or damaged."""
    path = workdir / SESSIONS
    try:
        return list(checked(_File, read_object(path), path).sessions)
    except (InputError, OSError):
        return []


def _steps(seconds: Mapping[str, float]) -> float:
    return seconds.get("train", 0.0) + seconds.get("data_wait", 0.0)
