"""Trackers beside a run, each in a process of its own: training never waits for or fails with one.

The process follows the folder and answers in lines for the user, the first of which is `ready` once
the tracker has taken the key. The run says when its files are cut to the step that it goes on from,
and when it has ended. Where the run dies, the process sees the end of its input, sends the rest and
leaves.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxpretrain.config.command import console_command
from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel import distributed
from jaxpretrain.track.contract import TrackerName, files_of
from jaxpretrain.track.follow import BEGIN, READY, REPORT

FLAG = "--config.monitor.trackers"
START_SECONDS = 30.0
"""The longest time that the start of a run waits for the answers of trackers."""
END_SECONDS = 60.0
"""The longest time that a run that has ended waits until all is sent."""
STOP_SECONDS = 10.0
"""The same for a run that was asked to stop: somebody wants the machine."""
_SILENT_SECONDS = 2.0
_PACKAGE = Path(__file__).parents[2]

Message = Callable[[str], None]
"""A function that shows the user one line; it is called from other threads too."""


@contextmanager
def trackers_beside(
    workdir: Path, names: Sequence[TrackerName], message: Message, is_complete: Callable[[], bool]
) -> Iterator[Callable[[], None]]:
    """Starts trackers, where the run has any; yields the function that lets them read the folder.

    All processes of a run call it; the first one has the trackers. A run that is complete or has
    failed has a report. InputError, in all processes: a tracker refuses the run.
    """
    started: list[_Beside] = []
    is_over, patience = False, 0.0  # seconds; a run that does not begin has nothing to wait for
    try:
        if names:
            with distributed.fail_together("trackers"):
                if distributed.is_primary():
                    started += [_Beside(workdir, name, message) for name in names]
                    deadline = time.monotonic() + START_SECONDS
                    for one in started:
                        one.wait_until_ready(deadline)

        def begin() -> None:
            for one in started:
                one.begin()

        patience = STOP_SECONDS
        yield begin
        is_over = bool(started) and is_complete()
    except Exception:
        is_over = patience > 0
        raise
    finally:
        for one in started:
            one.end(is_over=is_over)
        began = time.monotonic()
        going_on = [one for one in started if not one.ends_by(began + _SILENT_SECONDS)]
        if going_on and patience:
            names_left = " and ".join(one.name for one in going_on)
            message(f"waiting for {names_left} to take the rest of the run ...")
        for one in started:
            one.finish(began + (END_SECONDS if is_over else patience))


class _Beside:
    """The process of a tracker, as the run sees it."""

    def __init__(self, workdir: Path, name: TrackerName, message: Message) -> None:
        self.name = name
        self._workdir = workdir
        self._message = message
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_started = self._has_begun = False
        command = [sys.executable, "-m", "jaxpretrain.track.follow", str(workdir), name]
        path = os.pathsep.join(filter(None, [str(_PACKAGE), os.environ.get("PYTHONPATH")]))
        with (files_of(workdir) / f"{name}.log").open("w") as log:
            self._process = subprocess.Popen(
                command,
                # It needs no accelerator, and must not take that of the run.
                env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the run alone
            )
        threading.Thread(target=self._listen, name=name, daemon=True).start()

    def wait_until_ready(self, deadline: float) -> None:
        """Waits for the first answer; raises InputError where the tracker refuses the run.

        A tracker that has not answered by the deadline does so later.
        """
        with suppress(queue.Empty):
            answer = self._answers.get(timeout=max(deadline - time.monotonic(), 0))
            if answer.startswith("error: "):
                raise InputError(f"{FLAG}={answer.removeprefix('error: ')}")
            if not answer:
                log = files_of(self._workdir) / f"{self.name}.log"
                self._message(f"warning: {self.name} does not start; {log} says why")
            self._show(answer)
        self._is_started = True

    def begin(self) -> None:
        """Lets the process read the folder."""
        self._has_begun = True
        self._say(BEGIN)

    def _say(self, word: str) -> None:
        """Says a word to the process, which may be gone."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def end(self, *, is_over: bool) -> None:
        """Says that the run has ended, and that a report is wanted where it is over."""
        if is_over:
            self._say(REPORT)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def ends_by(self, deadline: float) -> bool:
        """Waits until the process has ended; returns False where it has not by the deadline."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(deadline - time.monotonic(), 0))
        return self._process.returncode is not None

    def finish(self, deadline: float) -> None:
        """Waits until all is sent; ends the process at the deadline."""
        if not self.ends_by(deadline):
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(OSError):
                    os.killpg(self._process.pid, number)
                if self.ends_by(time.monotonic() + _SILENT_SECONDS):
                    break
        if self._process.returncode and self._has_begun:
            again = f"{console_command()} track {self._workdir} --to={self.name}"
            self._message(f"warning: {self.name} has not all of the run; `{again}` sends the rest")

    def _listen(self) -> None:
        """Takes the answers: the first for the start, unless that is over, the others to show."""
        assert self._process.stdout is not None
        is_first = True
        for line in self._process.stdout:
            answer = line.strip()
            self._answers.put(answer) if is_first and not self._is_started else self._show(answer)
            is_first = False
        self._answers.put("")  # which is the first where it has ended without a word

    def _show(self, answer: str) -> None:
        if answer not in ("", READY):
            self._message(answer)
