import os
import signal

import jax
import pytest
from jax.experimental import multihost_utils

from jaxpretrain.train.stop import Preemption, stop_on_signal, stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_does_not_interrupt(number: signal.Signals):
    with stop_on_signal() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.reason == number.name


def test_a_second_ctrl_c_ends_at_once():
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat themselves
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_demand_stops_as_a_signal_does_and_says_why():
    with stop_on_signal() as stop:
        assert not stop.reached(3) and stop.alarm() is None
        stop.demand("the loss rises")
        stop.demand("it rises more")
        assert stop.reached(4) and stop.alarm() == "the loss rises"
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(4) and stop.alarm() is None


def test_handlers_are_put_back():
    # A shell's background jobs begin with SIGINT ignored, and tests may run in one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RuntimeError), stop_on_signal():
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_by_itself_stops_by_signals(number: signal.Signals):
    with stop_requests() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), number)
        assert stop.reached(2) and stop.reached(3)


def test_among_several_jax_keeps_the_signals(monkeypatch: pytest.MonkeyPatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with stop_requests() as stop:
        assert isinstance(stop, Preemption)
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("sync_point", "first", "expected"),
    [
        (6, 4, [False, True, True]),  # the service says so at one step alone
        (1, 4, [True, True, True]),  # told before anything was asked
        (1, 1, [True, True, True]),
        (9, 4, [False, False, False]),
    ],
)
def test_the_step_to_leave_at_is_remembered(
    sync_point: int, first: int, expected: list[bool], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: step == sync_point
    )
    stop = Preemption()
    assert [stop.reached(step) for step in range(first + 1, first + 4)] == expected
