"""Places of the code at which a process makes its own fault, and what it does there.

A place is a function by its module and name. It is wrapped in the forked process alone, so that the
fault comes exactly there, the n-th time that the function is called. The code is not changed.
"""

import errno
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

Action = Callable[[], None]

PHASES = {
    "rendezvous": "jaxpretrain.parallel.distributed:jax.distributed.initialize",
    "start": "jaxpretrain.train.run:open_run",
    "restore": "jaxpretrain.checkpoints.orbax:Checkpoints.restore_newest",
    "compile": "jaxpretrain.train.program:Program.compile",
    "first batch": "jaxpretrain.train.loop:_next",
    "step": "jaxpretrain.train.loop:_report",
    "evaluation": "jaxpretrain.evals.held_out:HeldOut._read",
    "save begins": "jaxpretrain.checkpoints.saving:Save._make_folders",
    "save is written": "jaxpretrain.checkpoints.saving:Save._write",
    "save is committed": "jaxpretrain.checkpoints.saving:Save._commit",
    "old save is removed": "jaxpretrain.checkpoints.orbax:Checkpoints._remove_old",
    "save is noted": "jaxpretrain.train.loop:note_saved",
    "end": "jaxpretrain.planning.training:_next_steps",
}
"""Phase -> the function in which it happens."""
OF_THE_FIRST = ("save begins", "save is committed", "old save is removed", "save is noted")
"""Phases that the first process alone has."""
READ = "jaxpretrain.train.stages:Stages.read"
"""The read of a batch, in a thread of its own."""
LOCAL_SAVE = "jaxpretrain.checkpoints.local:LocalCheckpoints.save"
"""The save of a step to the disk of the host."""


def wrap(place: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces a function by what `make` makes of it, wherever modules have imported it."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    before = getattr(owner, name)
    setattr(owner, name, make(before))


def at(place: str, action: Action, *, call: int = 1, after: bool = False) -> None:
    """Has an action happen before, or after, the n-th call of a function."""
    count = 0

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            is_now = count == call
            if is_now and not after:
                action()
            result = function(*args, **kwargs)
            if is_now and after:
                action()
            return result

        return wrapped

    wrap(place, make)


def only(victim: int, arm: Action) -> Callable[[int], None]:
    """Returns what arms one process."""
    return lambda process: arm() if process == victim else None


def send(number: int) -> Action:
    """An action: a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def kill() -> None:
    """Ends this process without a trace."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_soon(seconds: float) -> Action:
    """An action: this process is killed a moment later, in whatever it does then."""

    def begin() -> None:
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()

    return begin


def interrupt_twice() -> None:
    """Ctrl-C, and again."""
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)


def hang() -> None:
    """Never comes back."""
    time.sleep(1e6)


def fail(number: int) -> Action:
    """An action: an error of the system."""

    def raise_() -> None:
        raise OSError(number, os.strerror(number))

    return raise_


def raise_error() -> None:
    """An exception that nobody expects."""
    raise RuntimeError("a fault of the data")


def run_out_of_memory() -> None:
    """What JAX raises where a device has no room."""
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")


def fill(folder: Path, room: int = 0) -> Action:
    """An action: the file system of a folder is full, but for some bytes."""

    def write() -> None:
        with (folder / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                os.truncate(file.fileno(), max(file.tell() - room, 0))

    return write


def half_remove() -> None:
    """Kills the process in the middle of the removal of a folder."""

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Path, **_: object) -> None:
            files = sorted(file for file in Path(path).rglob("*") if file.is_file())
            for file in files[: len(files) // 2]:
                file.unlink()
            kill()

        return wrapped

    wrap("jaxpretrain.checkpoints.saving:shutil.rmtree", make)


def poison(call: int) -> None:
    """Has the n-th step of this process give a loss and weights that are no numbers."""
    count = 0

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        def compile_(self: Any) -> Any:
            step = function(self)

            class Poisoned:
                def __getattr__(self, name: str) -> Any:
                    return getattr(step, name)

                def __call__(self, state: Any, batch: Any) -> Any:
                    nonlocal count
                    count += 1
                    state, metrics = step(state, batch)
                    if count == call:
                        metrics = metrics | {"loss": metrics["loss"] * float("nan")}
                    return state, metrics

            return Poisoned()

        return compile_

    wrap("jaxpretrain.train.program:Program.compile", make)


def shorten_default(seconds: float) -> None:
    """Has the watchdog of this process allow fewer seconds where no limit is given."""
    for name in ("jaxpretrain.train.watchdog", "jaxpretrain.planning.training"):
        module: Any = importlib.import_module(name)
        module.DEFAULT_SECONDS = seconds


def shift_clock(seconds: float, call: int) -> None:
    """Has the wall clock jump at the n-th step; patched, the system's own clock stays."""
    real, shift = time.time, [0.0]
    time.time = lambda: real() + shift[0]

    def jump() -> None:
        shift[0] = seconds

    at(PHASES["step"], jump, call=call)
