"""The timer of processes, which are threads with a coordination service of their own here."""

import threading
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest

from jaxpretrain.parallel import timer
from jaxpretrain.parallel.timer import CommonTimer


def test_alone_it_goes_off_after_its_time(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(timer.time, "monotonic", lambda: now[0])
    found = []
    with CommonTimer(10.0) as common:
        for _ in range(9):
            now[0] += 4.0
            found.append(common.due())
    assert found == [False, False, True] * 3
    with CommonTimer(None) as common:
        assert not common.due()


class Service:
    """What processes publish and exchange; each of them is a thread, or has one."""

    def __init__(self, num_processes: int) -> None:
        self.published: dict[str, dict[int, str]] = defaultdict(dict)
        self._given: dict[str, dict[int, str]] = defaultdict(dict)
        self._all_here = threading.Condition()
        self._num_processes = num_processes

    def of(self, process: int) -> Any:
        def exchange(name: str, value: str, seconds: float) -> list[str]:
            with self._all_here:
                self._given[name][process] = value
                self._all_here.notify_all()
                assert self._all_here.wait_for(
                    lambda: len(self._given[name]) == self._num_processes, seconds
                )
                return list(self._given[name].values())

        return SimpleNamespace(
            has_others=lambda: True,
            is_primary=lambda: process == 0,
            publish=lambda name, value: self.published[name].update({process: value}),
            published=lambda name: dict(self.published[name]),
            exchange=exchange,
        )


def test_all_processes_agree_on_a_call_that_none_has_passed(monkeypatch: pytest.MonkeyPatch):
    """They ask at different times, one of them slowly, and often enough to go off twice."""
    service, local = Service(3), threading.local()

    class Distributed:
        def __getattr__(self, name: str) -> Any:
            return getattr(service.of(local.process), name)

    monkeypatch.setattr(timer, "distributed", Distributed())
    begin = CommonTimer._agree_often
    timers = [CommonTimer(0.1) for _ in range(3)]

    def agree(common: CommonTimer) -> None:
        local.process = timers.index(common)
        begin(common)

    monkeypatch.setattr(CommonTimer, "_agree_often", agree)
    found: dict[int, list[int]] = defaultdict(list)

    def train(process: int) -> None:
        local.process = process
        with timers[process] as common:
            for step in range(1, 400):
                time.sleep(0.001 + 0.001 * process)
                if common.due():
                    found[process].append(step)

    for common in timers:  # made anew, with the wrapped method
        common.__init__(0.05)
    threads = [threading.Thread(target=train, args=(process,)) for process in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert len(found[0]) >= 2
    # The last time may come when one has ended already.
    count = min(map(len, found.values()))
    assert count >= 2 and found[0][:count] == found[1][:count] == found[2][:count]
