"""What a process knows of the others, from a service that may never answer.

JAX's coordination service lives in process 0, and calls to it have no time limit. A thread of its
own calls it here: it says that this process is alive, and reads what the others say. All others
read what that thread has found, and wait for nobody. Where a process or its host stands still as a
whole, it says nothing more. JAX notices that as well, but aborts the others with a stack of its own
code, and so it is given more time (`distributed.JAX_SECONDS`).
"""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from jax.errors import JaxRuntimeError

from jaxpretrain.parallel import distributed

SILENT_SECONDS = 90.0
"""Seconds without a word after which a process counts as standing still. JAX waits two minutes for
the others to name their devices, and the watchdog is to come before it."""
_EVERY_SECONDS = 5.0
_ALIVE_SECONDS = 3 * _EVERY_SECONDS
_OFTEN_SECONDS = 0.2
"""Seconds between two calls, usually and where the run is at its end."""
_ALIVE, _STALLED, _TOLD = "alive", "stalled", "stall told"
_GONE = "gone"


class Service(Protocol):
    """Where processes show values to one another, as `distributed` does."""

    def publish(self, name: str, value: str) -> None:
        """Shows a value."""

    def published(self, name: str) -> dict[int, str]:
        """Returns the value of each process that shows one."""
        ...


class Peers:
    """The knowledge that one process has of the others of its run.

    No method waits without a limit.
    """

    def __init__(self, process: int, num_processes: int, service: Service | None = None) -> None:
        """Begins to say that this process is alive. None: the service of the run."""
        self._process, self._num_processes = process, num_processes
        self.places: Mapping[int, str] = {}
        """Where those processes stand that have noticed that the run stands still."""
        self.is_told = False
        """True once the first process has printed where all stand."""
        self._service = service or distributed
        self._place: str | None = None
        self._tells = self._hurries = False
        self._ends = False
        self._heard = dict.fromkeys(range(num_processes) if process == 0 else [0], time.monotonic())
        self._heard.pop(process, None)
        self._words: Mapping[int, str] = {}
        self._gone: set[int] = set()
        self._hears_all = process == 0
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="peers", daemon=True)
        self._thread.start()

    def silent(self, seconds: float | None = None) -> tuple[int, float] | None:
        """Returns the process that stands still as a whole, and the seconds since its last word.

        Process 0 hears all others, each of which hears process 0 alone. A process stands still that
        has said nothing for more than the given seconds; None: `SILENT_SECONDS`.
        """
        limit = SILENT_SECONDS if seconds is None else seconds
        said = min(list(self._heard.items()), key=lambda item: item[1], default=None)
        passed = 0.0 if said is None else time.monotonic() - said[1]
        return None if said is None or passed <= limit else (said[0], passed)

    def missing(self) -> tuple[int, float] | None:
        """Returns who says nothing from now on, and since when; waits for a word of each.

        Here each process hears all others, most of them within `_EVERY_SECONDS`; it waits for
        `_ALIVE_SECONDS` at most.
        """
        began = time.monotonic()
        for process in range(self._num_processes):
            if process != self._process and process not in self._gone:
                self._heard.setdefault(process, began)
        self._hears_all = self._hurries = True
        self._wake.set()
        while found := self.silent(time.monotonic() - began):
            if time.monotonic() - began > _ALIVE_SECONDS:
                break
            time.sleep(_OFTEN_SECONDS)
        return found

    def alive(self) -> set[int]:
        """Returns the other processes that have been heard within the last seconds."""
        earliest = time.monotonic() - _ALIVE_SECONDS
        return {process for process, heard in list(self._heard.items()) if heard > earliest}

    def report(self, place: str) -> None:
        """Tells the others that the run stands still, and where this process does."""
        self._place, self._hurries = place, True
        self._wake.set()

    def tell(self) -> None:
        """Tells the others that the first process has printed where all stand."""
        self._tells = True
        self._wake.set()

    def leave(self) -> None:
        """Tells the others that this process says nothing more, and is no longer watched."""
        self._ends = True
        self._wake.set()
        self._thread.join(2.0)

    def _ask(self) -> None:
        count, ends = 0, False
        while not ends:
            count, ends = count + 1, self._ends
            with suppress(JaxRuntimeError):  # the service has gone: JAX ends the process
                self._say(_GONE if ends else str(count))
                self._hear()
            if not self._ends:
                self._wake.wait(self._often() if self._hurries else _EVERY_SECONDS)
                self._wake.clear()

    def _say(self, word: str) -> None:
        self._service.publish(_ALIVE, word)
        if self._place is not None and self._process not in self.places:
            self._service.publish(_STALLED, self._place)
        if self._tells and not self.is_told:
            self._service.publish(_TOLD, "")

    def _often(self) -> float:
        """Returns the seconds between two calls at the end; the service has many to answer."""
        return min(max(_OFTEN_SECONDS, self._num_processes / 200), _EVERY_SECONDS)

    def _hear(self) -> None:
        self.places = self._service.published(_STALLED)
        self.is_told = bool(self._service.published(_TOLD))
        words = self._service.published(_ALIVE) if self._hears_all else {}
        now = time.monotonic()
        if self._process > 0:
            self._heard[0] = now  # the service has answered
        for process, word in words.items():
            if word == _GONE:
                self._gone.add(process)
                self._heard.pop(process, None)
            elif process in self._heard and word != self._words.get(process, word):
                self._heard[process] = now
        self._words = words
