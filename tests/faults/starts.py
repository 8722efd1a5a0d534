"""Real processes of the training command, forked from this one, which has imported all they need.

An import takes seconds, a fork milliseconds: that is the warm start that all faults share. This
process never touches a device and starts no thread, so that a fork of it is a fresh process. What
needs devices or storage, such as comparing checkpoints, is done in a fork too (`in_child`).
"""

import atexit
import ctypes
import gc
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import grain  # noqa: F401  imported where batches are read, which would take each process a second
import jax
from jax._src import compiler  # no public name has a process keep its programs

import jaxpretrain.planning.training  # noqa: F401  and all that it imports
from jaxpretrain.config.command import run
from jaxpretrain.main import main
from jaxpretrain.train import run as running

warnings.filterwarnings("ignore", message=".*os.fork.*")
T = TypeVar("T")
Arm = Callable[[int], None]
"""What a process does before it starts, by its number: it makes its fault."""

LIMIT_SECONDS = 600.0
"""Seconds after which a process that should end by itself has failed to; machines may be busy."""
_POLL_SECONDS = 0.02


class Hangs(Exception):
    """A process did not end in time."""


@dataclass
class Gang:
    """The processes of a run, in the order of their numbers."""

    pids: list[int]
    logs: list[Path]
    """Their standard error."""
    codes: dict[int, int] = field(default_factory=dict)
    """Process -> exit code, negative for a signal."""

    def poll(self) -> bool:
        """Looks who has ended; returns True while any is alive."""
        for number, pid in enumerate(self.pids):
            if number not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[number] = os.waitstatus_to_exitcode(status)
        return len(self.codes) < len(self.pids)

    def wait_for(self, condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> bool:
        """Waits until a condition holds; returns False where all have ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.poll():
                return condition()
            if time.monotonic() > deadline:
                self.kill()
                raise Hangs(f"nothing happened for {seconds:.0f} s: {self.text(0)[-400:]}")
            time.sleep(_POLL_SECONDS)
        return True

    def finish(self, seconds: float = LIMIT_SECONDS) -> list[int]:
        """Waits until all have ended; returns their exit codes."""
        self.wait_for(lambda: not self.poll(), seconds)
        return [self.codes[number] for number in range(len(self.pids))]

    def signal(self, number: int, process: int | None = None) -> None:
        """Sends a signal to one process that lives, or to all."""
        for index, pid in enumerate(self.pids):
            if index not in self.codes and process in (None, index):
                os.kill(pid, number)

    def kill(self) -> None:
        """Ends what is left, without a trace."""
        self.signal(signal.SIGKILL)
        self.signal(signal.SIGCONT)
        while self.poll():
            time.sleep(_POLL_SECONDS)

    def text(self, process: int = 0) -> str:
        """Returns what a process has printed so far."""
        return self.logs[process].read_text(errors="replace")


def start(
    flags: Sequence[str],
    logs: Path,
    *,
    num_processes: int = 1,
    num_devices: int = 4,
    arm: Arm | None = None,
    environment: dict[str, str] | None = None,
    leave_out: int | None = None,
    is_joined: bool = False,
) -> Gang:
    """Starts the processes of a run that share `num_devices`; one of them may be left out.

    `is_joined`: a single process adds up as several do, by Gloo.
    """
    together: list[str] = []
    if num_processes > 1 or is_joined:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num_processes}"]
    logs.mkdir(parents=True, exist_ok=True)
    gang = Gang([], [])
    gc.freeze()  # what is imported is no garbage, in no process
    for process in range(num_processes):
        if process == leave_out:
            continue
        own = [f"--process_id={process}"] if together else []
        log = logs / f"{len(list(logs.iterdir())):02d}-{process}.txt"
        log.touch()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment or {})
            if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
                jax.config.update("jax_compilation_cache_dir", folder)
            jax.config.update("jax_num_cpu_devices", num_devices // num_processes)
            _be([*flags, *together, *own], log, process, arm)
        gang.pids.append(pid)
        gang.logs.append(log)
    return gang


def _be(flags: list[str], log: Path, process: int, arm: Arm | None) -> NoReturn:
    """Becomes a process of the training command."""
    os.setsid()
    _end_with_parent()
    # Shells have what they start in the background ignore Ctrl-C, and so this process may.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # All that is compiled is kept, by the environment; a run keeps what takes a while. JAX has the
    # first process alone keep programs, for all; on the CPU those of the others have other names.
    running.keep_compiled = lambda: None
    compiler.distributed = SimpleNamespace(global_state=SimpleNamespace(process_id=0))
    for number, target in ((0, os.devnull), (1, os.devnull), (2, str(log))):
        os.dup2(os.open(target, os.O_RDWR | os.O_APPEND), number)
    sys.argv = ["jaxpretrain.main", *flags]
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    code = 1
    try:
        if arm is not None:
            arm(process)
        run(main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    # As Python ends: threads first, then what was registered.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    """Has the kernel kill this process when the one that forked it ends, however it ends.

    SIGTERM gets its usual meaning again, which the program of faults has changed for itself.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    set_signal_of_parents_death = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_signal_of_parents_death, int(signal.SIGKILL))


def in_child(action: Callable[..., T], *arguments: Any) -> T:
    """Returns the result of a function in a process of its own."""
    return next(side_by_side([partial(action, *arguments)], 1))


def side_by_side(actions: Iterable[Callable[[], T]], count: int) -> Iterator[T]:
    """Yields the results of functions as they come, each of a process of its own, `count` at once.

    RuntimeError: one has raised an exception.
    """
    waiting = iter(actions)
    with DefaultSelector() as results:
        for action in islice(waiting, count):
            _begin(action, results)
        while results.get_map():
            for key, _ in results.select():
                results.unregister(key.fileobj)
                with os.fdopen(key.fd, "rb") as pipe:
                    has_worked, result = pickle.load(pipe)
                os.waitpid(key.data, 0)
                for action in islice(waiting, 1):
                    _begin(action, results)
                if not has_worked:
                    raise RuntimeError(result)
                yield result


def _begin(action: Callable[[], object], results: DefaultSelector) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _end_with_parent()
        for key in list(results.get_map().values()):
            os.close(key.fd)
        os.close(reader)
        try:
            outcome = pickle.dumps((True, action()))
        except BaseException:
            outcome = pickle.dumps((False, traceback.format_exc()))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(outcome)
        os._exit(0)
    os.close(writer)
    results.register(reader, EVENT_READ, pid)
