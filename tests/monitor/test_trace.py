from pathlib import Path

import jax
import pytest

from jaxpretrain.monitor.trace import Trace


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What JAX's profiler is told."""
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(f"start {path}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def _steps(trace: Trace, steps: range, calls: list[str]) -> None:
    with trace:
        for step in steps:
            trace.before(step)
            calls.append(str(step))
            trace.after(step)


@pytest.mark.parametrize(
    ("traced", "steps", "expected"),
    [
        (None, range(1, 4), "1 2 3"),
        ((2, 3), range(1, 6), "1 start 2 3 stop 4 5"),
        ((2, 2), range(1, 4), "1 start 2 stop 3"),
        ((2, 9), range(1, 4), "1 start 2 3 stop"),  # the run ends first
        ((2, 5), range(4, 8), "start 4 5 stop 6 7"),  # a resume fell inside
        ((2, 3), range(4, 6), "4 5"),  # a resume came after
        ((7, 9), range(1, 3), "1 2"),
    ],
)
def test_exactly_the_steps_asked_for_are_traced(calls: list[str], traced, steps, expected: str):
    _steps(Trace(Path("logs"), traced), steps, calls)
    assert " ".join(calls) == expected.replace("start", "start logs")


def test_a_failing_run_keeps_its_trace(calls: list[str]):
    with pytest.raises(RuntimeError), Trace(Path("logs"), (1, 5)) as trace:
        trace.before(1)
        raise RuntimeError
    assert calls == ["start logs", "stop"]


def test_only_a_running_trace_ends(calls: list[str]):
    trace = Trace(Path("logs"), (2, 3))
    assert not trace.ends(3)
    trace.before(2)
    assert (trace.ends(2), trace.ends(3)) == (False, True)
    trace.after(3)
    assert not trace.ends(3) and calls[-1] == "stop"
