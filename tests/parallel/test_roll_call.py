"""Threads play the processes of a run, over loopback."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxpretrain.parallel import roll_call
from jaxpretrain.parallel.roll_call import MissingProcesses, call_roll


@pytest.fixture
def port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def meet(port: int, ids: list[int], of: int, seconds: float = 20.0) -> list[str]:
    """What each of the processes ends with: "" where all have come, or its error."""

    def come(process_id: int) -> str:
        try:
            call_roll(f"127.0.0.1:{port}", of, process_id, seconds, lambda line: None)
        except MissingProcesses as error:
            return str(error) or "silent"
        return ""

    with ThreadPoolExecutor(len(ids)) as pool:
        return list(pool.map(come, ids))


def test_all_go_on_when_all_have_come(port: int):
    assert meet(port, [2, 0, 3, 1], of=4) == [""] * 4
    with socket.create_server(("127.0.0.1", port)):  # the port is free again at once
        pass


def test_those_that_are_missing_are_named_by_the_first_alone(port: int):
    first, other = meet(port, [0, 4], of=6, seconds=1.5)
    assert first.startswith(f"process 1-3, 5 of 6 did not come to 127.0.0.1:{port} in 2 s; see ")
    assert "--coordinator_port=N" in first and "--start_timeout=SECONDS" in first
    assert other == "silent"


def test_a_first_process_that_cannot_be_reached_is_named_with_the_reason(port: int):
    (error,) = meet(port, [1], of=2, seconds=1.0)
    assert f"did not find process 0 at 127.0.0.1:{port} in 1 s (Connection refused)" in error


def test_while_they_wait_lines_say_for_what(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roll_call, "LINE_SECONDS", 0.5)
    for process_id, expected in ((0, "for process 1 of 2, "), (1, "Connection refused; ")):
        lines: list[str] = []
        with pytest.raises(MissingProcesses):
            call_roll(f"127.0.0.1:{port}", 2, process_id, 2.0, lines.append)
        assert lines and f"127.0.0.1:{port}" in lines[0] and expected in lines[0]


def test_a_port_that_is_still_held_is_waited_for(port: int):
    """The process of an earlier start, or JAX's service in it, may still end."""
    holder = socket.create_server(("", port))
    threading.Timer(1.5, holder.close).start()
    assert meet(port, [0, 1], of=2) == ["", ""]


def test_one_that_came_and_died_is_missing(port: int):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, port, [0], 2, 4.0)
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"jaxpretrain 1\n")
        assert "process 1 of 2 did not come" in first.result()[0] or first.result() == [""]


def test_strangers_at_the_port_do_not_count(port: int):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, port, [0], 2, 2.0)
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert "process 1 of 2 did not come" in first.result()[0]
