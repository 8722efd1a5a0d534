"""The connections between processes, here of one process; tests/faults/ kills real ones."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from jaxpretrain.parallel.presence import Presence


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


class Gang:
    """Three processes that write down which one they have lost."""

    def __init__(self) -> None:
        self.lost: dict[int, int] = {}
        self.all = [Presence(i, self._note(i)) for i in range(3)]
        told = self.all[0].listen(3)
        self.port = int(told.partition(" ")[0])
        for presence in self.all[1:]:
            presence.connect("127.0.0.1", lambda: told)
        assert _until(lambda: len(self.all[0]._connections) == 2)
        assert _until(lambda: all(presence._connections for presence in self.all))

    def _note(self, process: int) -> Callable[[int], None]:
        return lambda lost: self.lost.update({process: lost})

    def die(self, process: int) -> None:
        """As the system does: all connections of the process are closed."""
        self.all[process]._has_left = True  # it says nothing more
        for connection in self.all[process]._connections.values():
            with suppress(OSError):  # the other side has done so
                connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("victim", [0, 2])
def test_all_others_learn_who_is_lost(victim: int):
    gang = Gang()
    gang.die(victim)
    others = {0, 1, 2} - {victim}
    assert _until(lambda: others <= gang.lost.keys())
    assert {gang.lost[i] for i in others} == {victim}
    assert all(gang.all[i].is_lost.is_set() for i in others)


def test_those_that_leave_are_not_lost():
    gang = Gang()
    for process in (2, 0, 1):
        gang.all[process].leave()
        gang.die(process)
        time.sleep(0.1)
    assert gang.lost == {}


def test_the_first_ends_after_those_that_end():
    gang = Gang()
    first = gang.all[0]
    first.leave()
    threading.Timer(0.5, gang.die, [1]).start()
    began = time.monotonic()
    first.wait_until_gone([1], 9.0)
    assert 0.4 < time.monotonic() - began < 5.0
    began = time.monotonic()
    first.wait_until_gone([2], 0.5)  # it stays
    assert 0.4 < time.monotonic() - began < 5.0


def test_without_an_answer_a_process_goes_on_alone():
    def ask() -> str:
        raise OSError("the first does not answer")

    lost: list[int] = []
    presence = Presence(1, lost.append)
    presence.connect("127.0.0.1", ask)
    presence.wait_until_gone([], 1.0)
    presence.leave()
    assert lost == [] and not presence.is_lost.is_set()


def test_a_stranger_makes_no_connection(monkeypatch: pytest.MonkeyPatch):
    lost: list[int] = []
    first = Presence(0, lost.append)
    told = first.listen(2)
    port = told.partition(" ")[0]
    for greeting in (b"GET / HTTP/1.1\r\n", b"password 1"):
        with socket.create_connection(("127.0.0.1", int(port))) as stranger:
            stranger.sendall(greeting)
    second = Presence(1, lost.append)
    second.connect("127.0.0.1", lambda: told)
    assert _until(lambda: set(first._connections) == {1})
    assert lost == []
    second.leave()


def test_a_single_process_may_be_alone():
    """Its listener ends at once, before or after what others would have to know is told."""
    for _ in range(50):
        assert int(Presence(0).listen(1).partition(" ")[0]) > 0
