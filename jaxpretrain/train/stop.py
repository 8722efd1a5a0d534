"""Requests to stop: SIGTERM from a scheduler, Ctrl-C from a person.

The first one asks the loop to save and leave; a second Ctrl-C ends the process at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Set once by a signal, read by the loop between steps."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None


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
