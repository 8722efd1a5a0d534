"""Requests to stop: SIGTERM from a scheduler, Ctrl-C from a person.

In one process, the first one asks the loop to save and leave; a second Ctrl-C ends the process at
once. Among several, JAX's preemption service takes SIGTERM and finds the step at which all of them
can leave, even when only one was told; Ctrl-C ends the process as it does any program.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import jax
from jax.experimental import multihost_utils

from jaxpretrain.parallel.distributed import exchange, first_problem


class Stop(Protocol):
    """What the loop asks, once after each step."""

    def reached(self, step: int) -> bool:
        """Whether to save and leave after `step`; the same in all processes."""
        ...

    def demand(self, why: str) -> None:
        """Has all processes leave after some step soon, though nobody outside asks for it."""
        ...

    def alarm(self) -> str | None:
        """Why this was demanded by any process; to be asked by all of them when they leave."""
        ...


class StopRequest:
    """Set once by a signal, read by the loop between steps."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._alarm: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def reached(self, step: int) -> bool:
        """Whether a signal has come."""
        del step
        return bool(self)

    def demand(self, why: str) -> None:
        """As if a signal had come."""
        self.reason = self._alarm = self._alarm or why

    def alarm(self) -> str | None:
        """Why it was demanded."""
        return self._alarm


class Preemption:
    """JAX's preemption service, asked by the loop between steps.

    When a process is told to stop, the service takes the highest step that any of them has asked
    about, and the next one is where all leave. It says so at that step alone.
    """

    def __init__(self) -> None:
        self._reached: bool | None = None
        self._alarm: str | None = None

    def reached(self, step: int) -> bool:
        """Whether `step` is the one to leave at, or that one is past."""
        if self._reached is None:  # nothing was asked until now: a request so far means step 1
            early = str(multihost_utils.reached_preemption_sync_point(1))
            self._reached = "True" in exchange("preemption", early)
        self._reached |= multihost_utils.reached_preemption_sync_point(step)
        return self._reached

    def demand(self, why: str) -> None:
        """Sends this process the signal that the service waits for."""
        if self._alarm is None:
            self._alarm = why
            os.kill(os.getpid(), signal.SIGTERM)

    def alarm(self) -> str | None:
        """Why it was demanded; a barrier."""
        return first_problem("alarm", self._alarm)


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """What asks this run to stop; handles signals while inside, unless JAX does."""
    if jax.distributed.is_initialized():
        yield Preemption()  # a handler here would take SIGTERM from JAX's
        return
    with stop_on_signal() as request:
        yield request


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Catches SIGTERM and SIGINT while inside."""
    request = StopRequest()

    def ask(number: int, frame: object) -> None:
        del frame
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.reason = signal.Signals(number).name

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
