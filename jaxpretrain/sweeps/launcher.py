"""Where the runs of a sweep go: processes of this machine, with its cores and GPUs shared out.

A sweep is a list of commands with folders. For a cluster, `launch/` writes the same commands as one
job, and its engine does the scheduling.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from jaxpretrain.config.errors import InputError

Item = TypeVar("Item")


class Handle(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Returns the exit code; None while it goes on. A negative code is a signal's."""
        ...

    def stop(self) -> None:
        """Asks it to save and leave."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...


class Launcher(Protocol):
    """A place where runs are started."""

    @property
    def has_room(self) -> bool:
        """True where another run can start now."""
        ...

    def start(self, command: Sequence[str], log: Path) -> Handle:
        """Starts a command whose output goes to the end of a log."""
        ...


@dataclass
class LocalLauncher:
    """Runs processes side by side on this machine, each on its own share of cores and GPUs."""

    jobs: int
    """Largest number of processes at a time."""
    environment: Mapping[str, str]
    """Environment of the processes."""
    gpus: Sequence[str] = ()
    """Numbers of the GPUs that are shared out; none: nothing is said about GPUs."""
    _running: dict[int, "_Process"] = field(default_factory=dict)  # by the number of its share

    def __post_init__(self) -> None:
        if self.gpus and self.jobs > len(self.gpus):
            raise InputError(
                f"--jobs={self.jobs}: there are {len(self.gpus)} GPUs, and each run takes at least "
                "one"
            )

    @property
    def has_room(self) -> bool:
        """True while fewer processes run than may."""
        return sum(process.poll() is None for process in self._running.values()) < self.jobs

    def start(self, command: Sequence[str], log: Path) -> "_Process":
        """Starts a process on a free share."""
        busy = {share for share, process in self._running.items() if process.poll() is None}
        share = min(set(range(self.jobs)) - busy)
        environment = dict(self.environment)
        if self.gpus:
            mine = share_of(self.gpus, share, self.jobs)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # A session of its own: Ctrl-C reaches the sweep alone, which then asks each run once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        cores = sorted(os.sched_getaffinity(0))
        if 1 < self.jobs <= len(cores):  # set before Python has started, so all threads have it
            with suppress(ProcessLookupError):  # where it has ended by now
                os.sched_setaffinity(process.pid, share_of(cores, share, self.jobs))
        self._running[share] = _Process(process)
        return self._running[share]


@dataclass(frozen=True)
class _Process:
    """A process of this machine."""

    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        """Returns the exit code; None while it goes on."""
        return self.process.poll()

    def stop(self) -> None:
        """Sends SIGTERM, after which a run saves and leaves."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process and all that it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def share_of(items: Sequence[Item], share: int, of: int) -> Sequence[Item]:
    """Returns one of some shares, as equal as can be, of items that stand side by side."""
    return items[len(items) * share // of : len(items) * (share + 1) // of]
