"""Runs the processes of a training on this machine, and starts them again by the common rules."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from jaxpretrain.config.command import EXIT_STOPPED
from jaxpretrain.config.errors import InputError
from jaxpretrain.devices.gpus import gpu_ids
from jaxpretrain.display.wording import count_of
from jaxpretrain.launch.rules import Attempts, again_after, newest_step
from jaxpretrain.launch.training import Training

PATIENCE_SECONDS = 120.0
"""Seconds that the other processes have to end after the first of them has failed."""
_POLL_SECONDS = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class _Gang:
    """The processes of a run, which start and end together."""

    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    times_asked: int = 0
    """The number of signals that asked the run to stop."""

    def run(self, starts: Sequence[tuple[list[str], dict[str, str]]]) -> int:
        """Starts commands with environments; returns the largest exit code when all have ended."""
        # Sessions of their own: Ctrl-C reaches this program alone, which passes it on once.
        self.running = [
            subprocess.Popen(command, env=environment, start_new_session=True)
            for command, environment in starts
        ]
        if self.times_asked:  # while they started, or just before, when there was none to tell
            self.signal(signal.SIGTERM)
        deadline = None
        while any(process.poll() is None for process in self.running):
            failed = any(process.poll() for process in self.running)
            if failed and deadline is None:
                deadline = time.monotonic() + PATIENCE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        # A negative code is that of a signal; shells write it in another way.
        return max(p.returncode if p.returncode >= 0 else 128 - p.returncode for p in self.running)

    def signal(self, number: int) -> None:
        """Sends a signal to all processes that live."""
        for process in self.running:
            if process.poll() is None:
                process.send_signal(number)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Passes a request to stop on; a second Ctrl-C ends all at once."""
        del frame
        self.times_asked += 1
        is_last = number == signal.SIGINT and self.times_asked > 1
        self.signal(signal.SIGKILL if is_last else signal.SIGTERM)


def run_local(
    training: Training, *, num_processes: int, max_restarts: int, once: bool = False
) -> int:
    """Trains until the rules start the run no more; returns the exit code of its last start.

    Where there are several processes, they share the GPUs of the machine and meet at a free port.
    With `once` nothing is started again: the code is then `EXIT_STOPPED` where the rules would
    start again a run that has made progress, so that an engine need not count that start.
    """
    attempts = Attempts(max_restarts, newest_step(training.workdir))
    with _signals() as gang:
        while True:
            code = gang.run(_starts(training, num_processes))
            before, newest = attempts.newest, newest_step(training.workdir)
            if gang.times_asked:
                return code
            if once:
                is_cut_off = again_after(code) == "while progress"
                return EXIT_STOPPED if is_cut_off and newest > before else code
            goes_on = attempts.goes_on(code, newest)
            if again_after(code) != "never":
                step = f"step {newest} is saved" if newest >= 0 else "nothing is saved"
                failed = count_of(attempts.failures, "start")
                _say(f"launch: exit code {code}, {step}; {failed} failed in a row without progress")
            if not goes_on:
                return code


def _starts(training: Training, num_processes: int) -> list[tuple[list[str], dict[str, str]]]:
    """Returns the command and the environment of each process of a start."""
    command = [sys.executable, "-m", "jaxpretrain.main", *training.flags]
    if num_processes == 1:
        return [(command, dict(os.environ))]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num_processes}"]
    return [
        ([*command, *together, f"--process_id={i}"], _environment(i, num_processes))
        for i in range(num_processes)
    ]


def _environment(process: int, num_processes: int) -> dict[str, str]:
    """Returns the environment of a process, with its share of the GPUs where there are some."""
    environment = dict(os.environ)
    gpus = gpu_ids(environment)
    if gpus:
        share, rest = divmod(len(gpus), num_processes)
        if rest:
            raise InputError(
                f"--processes={num_processes}: {len(gpus)} GPUs do not divide over them"
            )
        mine = gpus[process * share : (process + 1) * share]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return environment


@contextmanager
def _signals() -> Iterator[_Gang]:
    """Yields a gang to which the requests to stop are passed on while inside."""
    gang = _Gang()
    before = {number: signal.signal(number, gang.ask) for number in _SIGNALS}
    try:
        yield gang
    finally:
        gang.signal(signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
