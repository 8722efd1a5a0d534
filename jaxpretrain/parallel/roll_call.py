"""The processes of a run meet before JAX joins them, so that those that are missing have names.

JAX waits inside of its own code, in silence, and says after minutes how many are missing. Here
process 0 listens for the others at the very address that JAX uses next, and knows who has come.
"""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

LINE_SECONDS = 30.0
"""Seconds between lines about what a process waits for."""
_GREETING = "jaxpretrain"
_ADVICE = (
    "see whether it was started and can reach that port; --coordinator_port=N takes another port, "
    "--start_timeout=SECONDS waits longer"
)


class MissingProcesses(Exception):
    """Some processes of the run did not come in time; the message is one line, or empty."""


def call_roll(
    address: str,
    num_processes: int,
    process_id: int,
    seconds: float,
    say: Callable[[str], None],
) -> None:
    """Returns when all processes of a run have come to the address HOST:PORT of process 0.

    `say` gets a line each `LINE_SECONDS` about what is waited for. Raises MissingProcesses after
    the given seconds; its message is empty where process 0 says it for all.
    """
    host, _, port = address.rpartition(":")
    if process_id == 0:
        _gather(host, int(port), num_processes, seconds, say)
    else:
        _come(host.strip("[]"), int(port), process_id, seconds, say)


def _gather(
    host: str, port: int, num_processes: int, seconds: float, say: Callable[[str], None]
) -> None:
    """Waits in process 0 for all others, and then lets them go on together."""
    came: dict[int, socket.socket] = {}
    start, trouble = time.monotonic(), ""
    next_line = start + LINE_SECONDS
    with ExitStack() as stack:
        listener: socket.socket | None = None
        while missing := [i for i in range(1, num_processes) if not _is_open(came.get(i))]:
            now = time.monotonic()
            names = f"process {in_ranges(missing)} of {num_processes}"
            if now > start + seconds:
                for connection in came.values():
                    _send(connection, "missing")
                raise MissingProcesses(
                    f"{names} did not come to {host}:{port} in {seconds:.0f} s{trouble}; {_ADVICE}"
                )
            if now > next_line:
                next_line += LINE_SECONDS
                left = start + seconds - now
                say(f"waiting at {host}:{port} for {names}, {left:.0f} s more{trouble}")
            try:
                if listener is None:  # what ran here before may still hold the port
                    listener = stack.enter_context(listen(port))
                    listener.settimeout(1.0)
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:
                trouble = f" (this port: {error.strerror})"
                time.sleep(1.0)
                continue
            trouble = ""
            stack.enter_context(connection)
            connection.settimeout(5.0)
            greeting, _, name = _receive(connection).partition(" ")
            if greeting == _GREETING and name.isdecimal():
                connection.setblocking(False)
                came[int(name)] = connection
        for connection in came.values():
            _send(connection, "go")
        for connection in came.values():
            # They close first, so that the port is free for JAX at once.
            connection.settimeout(5.0)
            with suppress(OSError):
                connection.recv(1)


def _come(
    host: str, port: int, process_id: int, seconds: float, say: Callable[[str], None]
) -> None:
    """Comes to process 0 and waits there for all others."""
    start = time.monotonic()
    next_line, trouble = start + LINE_SECONDS, "no answer"
    while (now := time.monotonic()) < start + seconds:
        if now > next_line:
            next_line += LINE_SECONDS
            left = start + seconds - now
            say(
                f"process {process_id} on {socket.gethostname()} tries {host}:{port}, where "
                f"process 0 should be: {trouble}; {left:.0f} s more"
            )
        try:
            with socket.create_connection((host, port), timeout=5.0) as connection:
                _send(connection, f"{_GREETING} {process_id}")
                # Process 0 keeps the time for all that it knows of.
                connection.settimeout(start + seconds + 10.0 - now)
                answer = _receive(connection)
        except OSError as error:
            trouble = error.strerror or str(error)
            answer = ""
        else:
            trouble = "what answers there is no waiting process"
        if answer == "go":
            return
        if answer == "missing":
            raise MissingProcesses("")
        time.sleep(0.5)
    raise MissingProcesses(
        f"process {process_id} on {socket.gethostname()} did not find process 0 at {host}:{port} "
        f"in {seconds:.0f} s ({trouble}); {_ADVICE}"
    )


def listen(port: int) -> socket.socket:
    """Returns a socket that listens at a port of all addresses of this machine; 0: any port."""
    if socket.has_dualstack_ipv6():
        family, options = socket.AF_INET6, {"dualstack_ipv6": True}
    else:
        family, options = socket.AF_INET, {}
    return socket.create_server(("", port), family=family, backlog=1024, **options)


def _is_open(connection: socket.socket | None) -> bool:
    """Returns True while the process at the other side lives."""
    if connection is None:
        return False
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:  # it has nothing to say, and is there
        return True
    except OSError:
        return False


def _send(connection: socket.socket, line: str) -> None:
    with suppress(OSError):  # one that has gone comes again, or is missing
        connection.sendall(f"{line}\n".encode())


def _receive(connection: socket.socket) -> str:
    """Returns a line from the other side; "" where it says nothing, or nothing of ours."""
    received = b""
    with suppress(OSError):
        while not received.endswith(b"\n") and len(received) < 64:
            part = connection.recv(64)
            if not part:
                break
            received += part
    return received.decode(errors="replace").strip()


def in_ranges(numbers: list[int]) -> str:
    """Returns numbers in ascending order as text, such as 1-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
