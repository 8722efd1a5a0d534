"""The saves of a run: when one is due and where to, how it is made, and what is told of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from jaxpretrain.checkpoints.local import LocalCheckpoints
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.checkpoints.saving import Save, is_full, seconds_for
from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.clock import Clock
from jaxpretrain.monitor.reporter import Reporter
from jaxpretrain.monitor.sessions import Sessions
from jaxpretrain.parallel.distributed import is_primary
from jaxpretrain.parallel.timer import CommonTimer
from jaxpretrain.storage.paths import patience
from jaxpretrain.train.experiment import Timeline
from jaxpretrain.train.step import TrainState
from jaxpretrain.train.watchdog import Watchdog
from jaxpretrain.train.workdir import note_saved

LOCAL_SAVES = 10
"""Number of saves with `checkpoint.local_dir` in the time of one without."""
_ATTEMPTS = 2
"""Number of further saves of a last state that finds the disk full."""
_MAX_UNSAVED = 3
"""Number of saves failed in a row that ends the run."""
Place = Literal["workdir", "local"]


class Ended(Exception):
    """The run has ended itself. All processes raise this alike, so that none waits for another."""

    exit_code = 3


class NotSaved(Ended):
    """Saves have failed, and the run ends without one of its last state."""

    exit_code = 1


@dataclass
class Saver:
    """Saves the state of a run where it is due."""

    workdir: Path
    timeline: Timeline
    checkpoints: Checkpoints
    local: LocalCheckpoints | None
    """The checkpoints on the disk of this host; None where none are made."""
    state: TrainState
    """The state as `jax.ShapeDtypeStruct` with shardings."""
    clock: Clock
    reporter: Reporter
    watchdog: Watchdog
    sessions: Sessions | None = None
    """The starts of the run, in the first process alone."""
    unsaved: list[Save] = field(default_factory=list)
    """The newest saves, where they have failed in a row."""
    held_up: list[float] = field(default_factory=list)
    """Seconds for which each save has held up the steps; what was waited for is left out."""
    _num_times: int = 0
    _last_seconds: float = 0.0

    @cached_property
    def timer(self) -> CommonTimer:
        """The timer of saves by time, which must be entered."""
        seconds: float | None = self.timeline.save_seconds
        if seconds is not None and self.local is not None:
            seconds /= LOCAL_SAVES
        return CommonTimer(seconds)

    def has_checkpoints(self) -> bool:
        """Returns True where the folder has a checkpoint."""
        return bool(self.checkpoints.steps())

    def due(self, step: int) -> Place | None:
        """Returns where a step is to be saved, the same in all processes; all ask once a step."""
        if self.timer.due():
            self._num_times += 1
            is_local = self.local is not None and self._num_times % LOCAL_SAVES
            return "local" if is_local else "workdir"
        every, by_time = self.timeline.save_every, self.timeline.save_seconds is not None
        always = self.timeline.keep_every if by_time else every
        if always and step % always == 0:
            return "workdir"
        is_local = self.local is not None and every and step % -(-every // LOCAL_SAVES) == 0
        return "local" if is_local else None

    def save(
        self, state: TrainState, step: int, *, is_last: bool, is_evaluation_due: bool = False
    ) -> None:
        """Starts to save the state, the clock and the number of samples seen; the loop goes on.

        The last save of a run is waited for, and so is one whose failure would end the run: all
        processes learn at the same step that it ends. NotSaved: a save that was waited for has
        failed.
        """
        # The save before may be under way.
        self.watchdog.enter("save", step, allowance=3 * seconds_for(self.state))
        with self.clock.measure("save"):
            self.checkpoints.wait()
            self.report()
            document = self._document(step, is_evaluation_due)
            self.reporter.publish()  # first: what a checkpoint goes on from is never missing
            began = time.monotonic()
            self.checkpoints.save(step, state, document)
            self.held_up.append(time.monotonic() - began)
            is_decisive = is_last or len(self.unsaved) + 1 >= _MAX_UNSAVED
            if is_decisive:
                self._wait_for(step, lambda: self.checkpoints.save(step, state, document))
        self.report()
        if is_decisive and self.unsaved:
            count = len(self.unsaved)
            which = f"step {step:,}"
            which = which if count == 1 else f"{count} saves in a row, up to {which},"
            newest = self.checkpoints.steps()[-1:]
            kept = f"Step {newest[0]:,} is the newest" if newest else "There is no checkpoint"
            raise NotSaved(
                f"{which} could not be saved: {self.unsaved[-1].problem}. {kept} in "
                f"{self.checkpoints.directory}; with that mended, the same command goes on from "
                "there"
            )

    def save_locally(self, state: TrainState, step: int) -> None:
        """Starts to save on the disk of this host; the loop goes on."""
        assert self.local is not None
        self.watchdog.enter("save", step, allowance=3 * seconds_for(self.state))
        with self.clock.measure("save"):
            self.reporter.publish()
            self.local.save(step, state, self._document(step))

    def report(self) -> None:
        """Reports the saves that have ended; scripts wait for the line `saved step N`."""
        for outcome in self.checkpoints.ended():
            if outcome.problem is None:
                self.unsaved.clear()
                self._last_seconds = outcome.seconds
                self.reporter.message(f"saved step {outcome.step:,}")
                if is_primary():
                    note_saved(self.workdir, outcome.step)
                if self.sessions is not None:
                    self.sessions.note(self.clock)
            else:
                self.unsaved.append(outcome)
                line = f"step {outcome.step:,} is not saved: {outcome.problem}"
                self.reporter.message(f"warning: {line}")

    def end(self) -> None:
        """Waits for what is under way, and reports it."""
        self.checkpoints.wait()
        if self.local is not None:
            self.local.wait()
        self.report()
        if self.held_up:
            held_up = sum(self.held_up) / len(self.held_up)
            self.reporter.message(
                f"saves: {len(self.held_up)}, each held up the steps for {held_up:.2g} s; the last "
                f"took {self._last_seconds:.2g} s, which a scheduler's notice must leave"
            )
        if self.sessions is not None:
            self.sessions.note(self.clock)
            self.reporter.message(f"goodput: {self.sessions.goodput().describe()}")

    def _document(self, step: int, is_evaluation_due: bool = False) -> Document:
        return {
            "clock": self.clock.state(),
            "data_position": int(self.timeline.pace.examples(step)),
            "evaluation_due": is_evaluation_due,
        }

    def _wait_for(self, step: int, save_again: Callable[[], None]) -> None:
        """Waits for a save, and tries again where the disk is full: nothing comes after it."""
        for _ in range(_ATTEMPTS):  # the same number in all processes
            with self.reporter.activity(f"saving step {step:,}"):
                self.checkpoints.wait()
            self.report()
            if not self.unsaved or not is_full(self.unsaved[-1].problem or ""):
                return
            time.sleep(patience() / 20)
            self.unsaved.pop()
            save_again()
        self.checkpoints.wait()
