"""Requests to stop: SIGTERM, SIGUSR1 or SIGUSR2 from a scheduler, Ctrl-C from a person.

In one process, the first one asks the loop to save and leave, and a line says so at once; a second
Ctrl-C ends the process at once. Python calls a handler only when the main thread is back in Python,
which takes minutes where it compiles. So a thread of its own reads the signals too, from the pipe
that the interpreter writes them to; it prints the line, and ends the process where the main thread
does not. Among several processes, JAX's preemption service takes SIGTERM (`distributed.start` has
the other two sent on as SIGTERM) and finds the time at which all of them can leave, even when only
one was told; Ctrl-C ends the process as it does any program.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from jaxpretrain.parallel.distributed import first_problem

_NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which schedulers announce the end; submitit sends SIGUSR2."""
_PATIENCE_SECONDS = 3.0
"""Seconds in which a process may end by itself after a second Ctrl-C."""


class StopRequest:
    """A request to stop this one process: a signal sets it, the loop reads it between steps."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.was_asked = False
        """True once the loop has begun to ask."""
        self._alarm: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def reached(self) -> bool:
        """Returns true where the run is to save and leave now."""
        self.was_asked = True
        return bool(self)

    def request_stop(self, why: str) -> None:
        """Requests a stop from inside the run."""
        self.reason = self._alarm = self._alarm or why

    def alarm(self) -> str | None:
        """Returns the reason of a request from inside the run."""
        return self._alarm


class Preemption:
    """Requests to stop many processes, through JAX's preemption service.

    The service is asked about numbers, here 1, 2, 3 and so on. When one process is told to stop, it
    takes the highest number that any process has asked about; all leave at the next number. It says
    so at that number alone.
    """

    def __init__(self) -> None:
        self._num_asked = 0
        self._reached = False
        self._alarm: str | None = None

    def reached(self) -> bool:
        """Returns true from the time on at which all processes leave; all ask equally often."""
        self._num_asked += 1
        self._reached |= multihost_utils.reached_preemption_sync_point(self._num_asked)
        return self._reached

    def request_stop(self, why: str) -> None:
        """Requests a stop by the signal that the service waits for, sent to this process."""
        if self._alarm is None:
            self._alarm = why
            os.kill(os.getpid(), signal.SIGTERM)

    def alarm(self) -> str | None:
        """Returns the reason of a request from inside any process. It waits for all processes."""
        return first_problem("alarm", self._alarm)


Stop = StopRequest | Preemption
"""Requests to stop, which the loop checks after each step and between evaluation batches."""


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Yields the requests to stop this run. Signals are handled while inside, by JAX or by us."""
    if jax.distributed.is_initialized():
        yield Preemption()  # a handler here would take SIGTERM from JAX's
        return
    with stop_on_signal() as request:
        yield request


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yields a request that the notices of schedulers and SIGINT set while inside."""
    request = StopRequest()

    def ask(number: int, frame: object) -> None:
        del frame
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.reason = signal.Signals(number).name

    ended = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    listener = threading.Thread(target=_listen, args=(reader, request, ended), daemon=True)
    previous = {number: signal.signal(number, ask) for number in (*_NOTICES, signal.SIGINT)}
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    listener.start()
    try:
        yield request
    finally:
        ended.set()
        signal.set_wakeup_fd(previous_writer)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(writer)  # which ends the listener
        listener.join()
        os.close(reader)


def _listen(reader: int, request: StopRequest, ended: threading.Event) -> None:
    """Answers signals in a thread while the main thread is busy, until the pipe is closed."""
    is_shown = False
    while numbers := os.read(reader, 1):
        (number,) = numbers
        if number not in (*_NOTICES, signal.SIGINT):
            continue
        if not is_shown and request.alarm() is None:
            is_shown = True
            when = "after this step" if request.was_asked else "once the first step is compiled"
            clear = "\r\x1b[K" if sys.stderr.isatty() else ""
            line = f"stopping {when}; Ctrl-C again ends at once without saving"
            sys.stderr.write(f"{clear}{signal.Signals(number).name}: {line}\n")
            sys.stderr.flush()
        elif number == signal.SIGINT and not ended.wait(_PATIENCE_SECONDS):
            os._exit(128 + signal.SIGINT)  # the main thread does not hear the KeyboardInterrupt
