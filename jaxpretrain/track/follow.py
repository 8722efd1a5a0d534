"""Sends the folder of a run to a tracker: at once, or beside the run as its own process.

    python -m jaxpretrain.track.follow DIR NAME

is that process, which `jaxpretrain.track.beside` starts and talks to.
"""

import fcntl
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.paths import is_remote, parse
from jaxpretrain.track.contract import TrackerName, connect, files_of, parse_trackers

if TYPE_CHECKING:
    from jaxpretrain.track.mirror import Mirror

READY, BEGIN, REPORT = "ready", "begin", "report"
"""The words between a run and the process."""
RETRY_SECONDS = 30.0
"""The time after which a tracker that has failed is tried again; it doubles each time."""
_LONGEST_RETRY = 600.0
_COMMAND_PATIENCE, _PATIENCE = 5.0, 600.0  # seconds that another process may take to finish
_NICENESS = 5


def send(workdir: Path, name: TrackerName) -> None:
    """Sends all that a tracker does not have, and the report.

    InputError: it refuses the run, the folder holds none, or a process mirrors it right now.
    """
    connect(name, files_of(workdir)).check()
    with _alone(workdir, name, _COMMAND_PATIENCE):
        mirror = open_mirror(workdir, name)
        mirror.finish()
        mirror.close()


def open_mirror(workdir: Path, name: TrackerName) -> "Mirror":
    """Opens the run of a folder in a tracker."""
    from jaxpretrain.track.mirror import Mirror  # here: it imports JAX, after the first answer

    return Mirror(workdir, name, connect(name, files_of(workdir)))


@contextmanager
def _alone(workdir: Path, name: TrackerName, seconds: float) -> Iterator[None]:
    """Keeps other processes of this machine from sending the same; waits some time for another."""
    deadline = time.monotonic() + seconds
    with (files_of(workdir) / f".{name}.lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise InputError(f"{workdir}: another process sends it to {name}") from None
                time.sleep(0.2)
        yield


class Follower:
    """Follows a run for as long as it trains; a failure of the tracker is a line of warning."""

    def __init__(self, workdir: Path, name: TrackerName, say: Callable[[str], None]) -> None:
        self._workdir = workdir
        self._name: TrackerName = name
        self._say = say
        self._every = 60.0 if is_remote(workdir) else 5.0  # seconds
        self._has_warned = False

    def check(self) -> int:
        """Says `ready`, or what is wrong; returns 2 where the tracker refuses the run."""
        try:
            connect(self._name, files_of(self._workdir)).check()
            self._say(READY)
        except InputError as error:
            self._say(f"error: {error}")
            return 2
        except Exception as error:  # no failure here may end the run
            self._warn(error)
        return 0

    def follow(self, words: "queue.SimpleQueue[str]") -> int:
        """Mirrors the folder until the words end; returns 1 where something is left to send."""
        mirror, said, pause = None, {words.get()}, self._every
        if BEGIN not in said:
            return 0
        with _alone(self._workdir, self._name, _PATIENCE):
            while True:
                with suppress(queue.Empty):
                    said.add(words.get(timeout=pause))
                is_last = "" in said
                try:
                    if mirror is None and (self._workdir / "experiment.json").exists():
                        mirror = open_mirror(self._workdir, self._name)
                    if mirror is not None:
                        mirror.finish() if is_last and REPORT in said else mirror.send()
                        if is_last:
                            mirror.close()
                    pause = self._every
                except Exception as error:  # no failure here may end the run
                    mirror, pause = None, min(max(RETRY_SECONDS, 2 * pause), _LONGEST_RETRY)
                    self._warn(error)
                    if is_last:
                        return 1
                if is_last:
                    return 0

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._say(
                f"warning: {self._name}: {in_a_line(error)}; the run goes on, and what is missing "
                "is sent when that is over"
            )
        self._has_warned = True


def in_a_line(error: Exception) -> str:
    """Returns what an error of a tracker says, in one line that is not too long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _read_words(source: TextIO) -> "queue.SimpleQueue[str]":
    """Returns the words on a stream as they come; "" is its end."""
    words: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in source:
            words.put(line.strip())
        words.put("")

    threading.Thread(target=read, name="words", daemon=True).start()
    return words


def main(argv: list[str]) -> int:
    """Follows the run in a folder, as its process beside it."""
    os.nice(_NICENESS)
    # What the tracker itself prints goes where its log is.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    (name,) = parse_trackers(argv[1], "NAME")
    follower = Follower(parse(argv[0]), name, lambda line: print(line, file=answers, flush=True))
    return follower.check() or follower.follow(_read_words(sys.stdin))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
