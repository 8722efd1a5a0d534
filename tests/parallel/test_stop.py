import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

from jaxpretrain.parallel.stop import Preemption, stop_on_signal, stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
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
        assert not stop.reached() and stop.alarm() is None
        stop.request_stop("the loss rises")
        stop.request_stop("it rises more")
        assert stop.reached() and stop.alarm() == "the loss rises"
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached() and stop.alarm() is None


def test_handlers_are_put_back():
    # A shell's background jobs begin with SIGINT ignored, and tests may run in one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RuntimeError), stop_on_signal():
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_run_by_itself_stops_by_signals(number: signal.Signals):
    with stop_requests() as stop:
        assert not stop.reached()
        os.kill(os.getpid(), number)
        assert stop.reached() and stop.reached()


def test_among_several_jax_keeps_the_signals(monkeypatch: pytest.MonkeyPatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with stop_requests() as stop:
        assert isinstance(stop, Preemption)
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("sync_point", "expected"),
    [
        (1, [True, True, True]),  # told before anything was asked
        (2, [False, True, True]),  # the service says so once
        (9, [False, False, False]),
    ],
)
def test_the_time_to_leave_is_found_by_counting_and_remembered(
    sync_point: int, expected: list[bool], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda number: number == sync_point
    )
    stop = Preemption()
    assert [stop.reached() for _ in range(3)] == expected


def _line(capfd: pytest.CaptureFixture[str]) -> str:
    """What is said on standard error, as soon as it is."""
    deadline, error = time.monotonic() + 30, ""
    while not error.endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.01)
        error += capfd.readouterr().err
    return error


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_signal_is_answered_at_once_with_what_is_waited_for(
    number: signal.Signals, asked: bool, capfd: pytest.CaptureFixture[str]
):
    with stop_on_signal() as stop:
        if asked:
            stop.reached()
        os.kill(os.getpid(), number)
        when = "after this step" if asked else "once the first step is compiled"
        line = f"{number.name}: stopping {when}; Ctrl-C again ends at once without saving\n"
        assert _line(capfd) == line


BUSY = """
import ctypes
from jaxpretrain.parallel.stop import stop_on_signal
mutex = ctypes.create_string_buffer(64)
with stop_on_signal():
    print("busy", flush=True)
    while True:
        try:  # the second time for ever, as a compiler does: no Python in this thread
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
        except KeyboardInterrupt:  # that came before
            pass
"""


def test_where_the_main_thread_is_not_in_python_signals_are_heard_too():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("SIGINT: stopping once the first step is compiled")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=50)
    assert (process.returncode, rest) == (130, "")
