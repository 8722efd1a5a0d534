"""A timer of all processes of a run, which goes off at the same step in each of them.

No step waits for that. Where the first process finds that the time has come, threads of all
processes tell one another how many steps they have asked about, and agree on the number after the
largest, as JAX's preemption service does for stops. Only then does asking wait, for milliseconds.
"""

import threading
import time
from typing import Self

from jax.errors import JaxRuntimeError

from jaxpretrain.parallel import distributed

_LOOK_SECONDS = 5.0
"""The longest time between two looks for what the first process has published."""
_WAIT_SECONDS, _LOCK_SECONDS = 60.0, 10.0
"""Seconds in which all processes come to an agreement, and in which they agree."""


class CommonTimer:
    """Goes off again and again; all processes ask equally often, while inside."""

    def __init__(self, seconds: float | None) -> None:
        """Takes the seconds between two times; None: it never goes off."""
        self._seconds = seconds
        self._last = time.monotonic()
        self._num_asked = 0
        self._agreed: int | None = None
        self._lock = threading.Lock()
        self._taken = threading.Event()  # the agreed call has come
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._agree_often, name="timer", daemon=True)

    def __enter__(self) -> Self:
        if self._seconds is not None and distributed.has_others():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def due(self) -> bool:
        """Returns True where the time has come, at the same call in all processes."""
        if self._seconds is None:
            return False
        if not distributed.has_others():
            if time.monotonic() - self._last < self._seconds:
                return False
            self._last = time.monotonic()
            return True
        with self._lock:
            self._num_asked += 1
            is_now = self._num_asked == self._agreed
        if is_now:
            self._last = time.monotonic()
            self._taken.set()
        return is_now

    def _agree_often(self) -> None:
        assert self._seconds is not None
        known = "0"
        while not self._ended.is_set():
            if distributed.is_primary():
                self._ended.wait(max(0.0, self._last + self._seconds - time.monotonic()))
                distributed.publish("timer", str(int(known) + 1))
            if (found := distributed.published("timer").get(0, "0")) == known:
                self._ended.wait(min(_LOOK_SECONDS, self._seconds / 10))
                continue
            known = found
            try:
                self._agree(known)
            except JaxRuntimeError:  # one has just ended, or all do
                self._last = time.monotonic()
                continue
            while not self._taken.wait(1.0) and not self._ended.is_set():
                pass
            self._taken.clear()

    def _agree(self, turn: str) -> None:
        """Agrees with the other processes on the call at which it goes off."""
        distributed.exchange(f"timer {turn} begins", "", _WAIT_SECONDS)
        with self._lock:  # nobody asks before all have agreed
            asked = distributed.exchange(f"timer {turn}", str(self._num_asked), _LOCK_SECONDS)
            self._agreed = max(map(int, asked)) + 1
