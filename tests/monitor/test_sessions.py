"""The starts of a run, as they are written down and read at the next one."""

import json
import time
from pathlib import Path

import pytest

from jaxpretrain.diagnosis.clock import PARTS, Clock
from jaxpretrain.monitor.sessions import Sessions, process_start

NOW = 2_000_000_000.0


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The unix time that everything sees."""
    now = [NOW]
    monkeypatch.setattr("jaxpretrain.monitor.sessions.time.time", lambda: now[0])
    monkeypatch.setattr("jaxpretrain.monitor.sessions.process_start", lambda: now[0])
    return now


def test_sessions_of_one_process_share_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As after an out-of-memory, where the run goes on in the same process."""
    now = [NOW + 10.0]
    monkeypatch.setattr("jaxpretrain.monitor.sessions.time.time", lambda: now[0])
    monkeypatch.setattr("jaxpretrain.monitor.sessions.process_start", lambda: NOW)
    for _ in range(3):
        sessions, clock = Sessions(tmp_path), Clock(lambda: now[0])
        sessions.begin(clock)
        with clock.measure("train"):
            now[0] += 20.0
        sessions.note(clock)
        now[0] += 5.0
    found = sessions.goodput()
    assert found.wall == pytest.approx(80.0)
    assert found.seconds["start"] == pytest.approx(20.0)
    assert found.seconds["lost steps"] + found.seconds["steps"] == pytest.approx(60.0)


def test_a_process_knows_when_it_began():
    assert 0 < time.time() - process_start() < 24 * 3600


def test_a_session_that_was_cut_off_ends_with_its_last_line_and_its_stacks(
    now: list[float], tmp_path: Path
):
    clock = Clock(lambda: now[0] - NOW)
    first = Sessions(tmp_path)
    first.begin(clock)
    with clock.measure("train"):
        now[0] += 40.0
    first.note(clock)  # with a save
    saved = clock.state()
    parts = {f"time/{part}_seconds": 0.0 for part in PARTS} | {"time/train_seconds": 60.0}
    line = {"step": 9, "time": NOW + 60.0, **parts}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n" + '{"step": 10, "ti')
    (tmp_path / "stacks").mkdir()
    stalled = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOW + 100.0))
    (tmp_path / "stacks" / "0.txt").write_text(f"process 0 of 1, 7 on h, {stalled}\n...\n")

    now[0] = NOW + 1000.0
    clock = Clock(lambda: now[0] - NOW - 1000.0)
    clock.restore(saved)
    second = Sessions(tmp_path)
    second.begin(clock)
    with clock.measure("train"):
        now[0] += 50.0
    second.note(clock)
    assert second.first_start == NOW
    found = second.goodput()
    assert found.wall == pytest.approx(1050.0)
    assert found.seconds["stall"] == pytest.approx(40.0)
    assert found.seconds["idle"] == pytest.approx(900.0)
    assert found.seconds["lost steps"] == pytest.approx(20.0)
    assert found.seconds["steps"] == pytest.approx(40.0 + 50.0)
