import pytest

from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.monitor import hosts
from jaxpretrain.monitor.hosts import Hosts, spread
from jaxpretrain.parallel import distributed


def test_the_slowest_process_is_compared_with_the_usual_one():
    own = {0: 0.1, 1: 0.12, 2: 0.11, 3: 0.4}
    found = spread(own, step_seconds=0.5)
    assert found == {"perf/slowest_host": 3.0, "perf/host_spread": pytest.approx(0.29 / 0.5)}
    assert spread({0: 0.1}, step_seconds=0.5) == {}


def test_a_process_that_is_alone_compares_nothing():
    assert Hosts(Clock()).compare(10) == {}


@pytest.fixture
def board(monkeypatch):
    """What processes tell; the other one spends 0.6 s a step on its own."""
    board = {1: "0.6"}
    monkeypatch.setattr(distributed, "has_others", lambda: True)
    monkeypatch.setattr(distributed, "publish", lambda name, value: board.__setitem__(0, value))
    monkeypatch.setattr(distributed, "published", lambda name: board)
    return board


def test_own_time_is_what_is_not_spent_waiting_for_devices(board):
    """A step takes a second, 0.1 for data, 0.2 to hand it over, 0.7 until the devices are done."""
    now = 0.0

    def time():
        return now

    clock = Clock(time)
    compared, found = Hosts(clock, time), {}
    assert compared.compare(0) == {}
    for step in range(1, 31):
        with clock.measure("data_wait"):
            now += 0.1
        with clock.measure("train"):
            now += 0.2
            with clock.waiting():
                now += 0.7
        if metrics := compared.compare(step):
            found[step] = metrics
    assert float(board[0]) == pytest.approx(0.3)
    assert all(apart >= hosts.SECONDS_APART for apart in found)
    assert 2 <= len(found) <= 3
    assert found[max(found)] == {
        "perf/slowest_host": 1.0,
        "perf/host_spread": pytest.approx(0.3),
    }
