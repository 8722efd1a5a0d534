"""What processes know of one another, over a board in place of the coordination service."""

import threading
import time
from collections.abc import Callable, Iterator

import jax
import pytest

from jaxpretrain.parallel import peers as module
from jaxpretrain.parallel.peers import Peers


class Board:
    """The values that all processes show."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, str]] = {}


class View:
    """The board as one process sees it; it can stop to answer, or answer with an error."""

    def __init__(self, board: Board, process: int) -> None:
        self.board, self.process = board, process
        self.answers = threading.Event()
        self.answers.set()
        self.fails = False

    def publish(self, name: str, value: str) -> None:
        self._wait()
        self.board.values.setdefault(name, {})[self.process] = value

    def published(self, name: str) -> dict[int, str]:
        self._wait()
        return dict(self.board.values.get(name, {}))

    def _wait(self) -> None:
        self.answers.wait()
        if self.fails:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")


class Gang:
    """Three processes."""

    def __init__(self) -> None:
        board = Board()
        self.views = [View(board, i) for i in range(3)]
        self.all = [Peers(i, 3, self.views[i]) for i in range(3)]
        assert _until(lambda: len(board.values.get("alive", {})) == 3)

    def silent(self, process: int) -> int | None:
        found = self.all[process].silent()
        return None if found is None else found[0]


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def gang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gang]:
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(module, "_ALIVE_SECONDS", 1.0)
    monkeypatch.setattr(module, "SILENT_SECONDS", 1.0)
    gang = Gang()
    yield gang
    for view in gang.views:
        view.answers.set()
    for peers in gang.all:
        peers.leave()


def test_processes_that_speak_are_alive(gang: Gang):
    time.sleep(1.5)
    assert [gang.silent(i) for i in range(3)] == [None, None, None]
    assert gang.all[0].alive() == {1, 2}


def test_the_first_finds_the_one_that_stands_still(gang: Gang):
    gang.views[2].answers.clear()
    assert _until(lambda: gang.silent(0) == 2)
    assert gang.all[0].alive() == {1}
    assert gang.silent(1) is None  # which hears the first alone


def test_nobody_waits_for_a_first_that_never_answers(gang: Gang):
    for view in gang.views[1:]:  # calls to its service come back no more
        view.answers.clear()
    began = time.monotonic()
    gang.all[1].report("step 3")
    assert gang.silent(1) is None and 1 not in gang.all[1].places
    assert time.monotonic() - began < 0.5
    assert _until(lambda: gang.silent(1) == gang.silent(2) == 0)


def test_who_is_missing_is_found_soon(gang: Gang):
    assert gang.all[0].missing() is None and gang.all[2].missing() is None
    gang.views[2].answers.clear()
    time.sleep(0.3)  # its last words have been heard
    began = time.monotonic()
    for peers in gang.all[:2]:  # here all hear all
        found = peers.missing()
        assert found is not None and found[0] == 2
    assert 1.9 < time.monotonic() - began < 8.0


def test_a_service_that_only_fails_is_silent(gang: Gang):
    gang.views[1].fails = True
    assert _until(lambda: gang.silent(1) == 0)
    gang.views[1].fails = False
    assert _until(lambda: gang.silent(1) is None)


def test_those_that_leave_are_not_missed(gang: Gang):
    gang.all[1].leave()
    time.sleep(1.5)
    assert gang.silent(0) is None
    assert gang.all[0].alive() == {2}


def test_all_learn_where_the_run_stands_still(gang: Gang):
    gang.all[2].report("batch of step 9")
    assert _until(lambda: all(peers.places == {2: "batch of step 9"} for peers in gang.all))
    assert not gang.all[1].is_told
    gang.all[0].tell()
    assert _until(lambda: all(peers.is_told for peers in gang.all))
