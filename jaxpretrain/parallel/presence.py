"""Each process of a run stays connected to the first one, so that a death is noticed at once.

The system closes the connections of a dead process within milliseconds, however it died. The first
process then tells all others, prints one line, and all exit with 1. Where no connection can be
made, as behind a firewall, the watchdog notices it later, by the silence of that process (`peers`).
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector

from jaxpretrain.parallel.roll_call import listen

_CONNECT_SECONDS = 30.0
"""Seconds in which the connections are made, beside the start of the run."""
_BYE, _LOST = b"bye\n", b"lost "


class Presence:
    """The connections of one process.

    Process 0 has one to every other process, each other process has one to process 0.
    """

    def __init__(self, process: int, end: Callable[[int], None] | None = None) -> None:
        """Takes the number of this process, and what ends it when another one is lost."""
        self._process = process
        self._end = end or self._leave
        self._connections: dict[int, socket.socket] = {}
        self._has_left = False
        self.is_lost = threading.Event()
        """Set where another process is lost; this one ends within a second."""

    def listen(self, num_processes: int) -> str:
        """Waits for all others in a thread; returns what they must know: port and password."""
        listener, password = listen(0), secrets.token_hex(8)
        told = f"{listener.getsockname()[1]} {password}"  # the thread closes the socket
        listener.settimeout(1.0)

        def gather() -> None:
            deadline = time.monotonic() + _CONNECT_SECONDS
            with listener:
                while len(self._connections) < num_processes - 1 and time.monotonic() < deadline:
                    with suppress(OSError):
                        connection, _ = listener.accept()
                        connection.settimeout(5.0)
                        said, _, name = _receive(connection).decode(errors="replace").partition(" ")
                        if said == password:
                            self._connections[int(name)] = connection
                        else:
                            connection.close()
            self._watch(self._connections)

        threading.Thread(target=gather, name="presence", daemon=True).start()
        return told

    def connect(self, host: str, ask: Callable[[], str]) -> None:
        """Makes the connection to process 0 in a thread; `ask` returns what `listen` has there.

        Where it cannot be made, or `ask` raises an OSError, the process goes on without it.
        """

        def connect() -> None:
            with suppress(OSError):
                port, _, password = ask().partition(" ")
                connection = socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)
                connection.sendall(f"{password} {self._process}".encode())
                self._connections[0] = connection
                self._watch({0: connection})

        threading.Thread(target=connect, name="presence", daemon=True).start()

    def leave(self) -> None:
        """Tells the others that this process ends as all do."""
        self._has_left = True
        for connection in list(self._connections.values()):
            with suppress(OSError):
                connection.sendall(_BYE)

    def wait_until_gone(self, processes: Collection[int], seconds: float) -> None:
        """Waits in process 0 until others have ended, for so many seconds at most.

        Those without a connection get one second.
        """
        deadline = time.monotonic() + seconds
        if not self._connections.keys() >= set(processes):
            time.sleep(1.0)
        for connection in [self._connections[i] for i in processes if i in self._connections]:
            with suppress(OSError):  # it is broken, or time is up
                while (left := deadline - time.monotonic()) > 0:
                    connection.settimeout(left)
                    if not connection.recv(64):
                        break

    def _watch(self, connections: Mapping[int, socket.socket]) -> None:
        with DefaultSelector() as selector:
            for process, connection in connections.items():
                connection.settimeout(5.0)
                selector.register(connection, EVENT_READ, process)
            while selector.get_map():
                for key, _ in selector.select():
                    process, word = key.data, _receive(connections[key.data])
                    if word.startswith(_BYE) or self._has_left:
                        selector.unregister(key.fileobj)
                        continue
                    lost = int(word.split()[1]) if word.startswith(_LOST) else process
                    self.is_lost.set()
                    for other in connections.values():
                        with suppress(OSError):
                            other.sendall(_LOST + f"{lost}\n".encode())
                    self._end(lost)
                    return

    def _leave(self, lost: int) -> None:
        """Ends this process, which cannot go on without the lost one."""
        if self._process == (1 if lost == 0 else 0):
            print(
                f"error: process {lost} of the run is gone, and so all end; its own output may say "
                "why. The same command goes on from the newest checkpoint",
                file=sys.stderr,
                flush=True,
            )
        if self._process == 0:  # JAX's service lives here: those that lose it are aborted
            time.sleep(0.5)
        os._exit(1)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(64)
    except OSError:
        return b""
