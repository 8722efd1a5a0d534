"""One fault: a run that it befalls, checks of how it ended, and the run that goes on after it."""

import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults import starts, world
from tests.faults.starts import Arm, Gang
from tests.faults.world import NUM_STEPS, World


class Failed(Exception):
    """The fault did not end as the table of kinds says."""


class NotHere(Exception):
    """This machine cannot make the fault."""


@dataclass
class Case:
    """One fault and what came of it."""

    world: World
    folder: Path
    draw: Random
    """The source of all that is random about it."""
    num_processes: int = 1
    workdir: str = ""
    """The folder of its run; of a disk unless a kind says otherwise."""
    is_joined: bool = False
    """True where a single process adds up as several do: then all numbers have the same bits."""
    flags: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    steps_lost: int = 0
    """Committed steps that the fault did not damage, and that the next start went back behind."""
    steps_redone: int = 0
    """Finished steps that were computed again."""
    differing_bits: int = 0
    note: str = ""
    """What was drawn, in words."""
    seconds_to_step: float | None = None
    """Seconds from the start after the fault to its first finished step."""

    def __post_init__(self) -> None:
        self.workdir = self.workdir or str(self.folder / "run")

    def start(
        self,
        arm: Arm | None = None,
        *flags: str,
        num_processes: int | None = None,
        leave_out: int | None = None,
    ) -> Gang:
        """Starts the run, with a fault of its own."""
        return starts.start(
            [f"--config={self.world.config}", f"--workdir={self.workdir}", *self.flags, *flags],
            self.folder / "logs",
            num_processes=num_processes or self.num_processes,
            num_devices=world.NUM_DEVICES,
            arm=arm,
            environment=self.world.environment | self.environment,
            leave_out=leave_out,
            is_joined=self.is_joined,
        )

    @property
    def usual_seconds(self) -> float:
        """The seconds that the run takes where nothing interrupts it."""
        return self.world.reference(self.num_processes).seconds

    def stall(self) -> str:
        """Returns the flag of a limit that no phase comes near, however busy this machine is."""
        return f"--config.monitor.stall={max(20.0, 2 * self.usual_seconds):.0f} seconds"

    def anyone(self) -> int:
        """Returns the number of a process, by chance."""
        return self.draw.randrange(self.num_processes)

    def wait_step(self, gang: Gang, step: int) -> bool:
        """Waits until a step is finished; returns False where the run has ended before."""
        return gang.wait_for(lambda: finished(gang.text()) >= step)

    def check_codes(self, gang: Gang, *allowed: Collection[int]) -> None:
        """Checks the exit codes; the last collection counts for all further processes."""
        codes = gang.finish()
        for number, code in enumerate(codes):
            expected = allowed[min(number, len(allowed) - 1)]
            if code not in expected:
                raise Failed(f"process {number} exits with {code}: {self.ends(gang)}")

    def has_stopped(self, gang: Gang) -> bool:
        """Checks that a run that was told to stop has; returns False where its end came first.

        Several processes agree on the step while they go on, so that the end can come first.
        """
        codes = gang.finish()
        if self.num_processes > 1 and not any(codes):
            return False
        self.check_codes(gang, {75})
        return True

    def require_stopped(self, gang: Gang) -> None:
        """Checks that a run that was told to stop has, before its end; otherwise NotHere."""
        if not self.has_stopped(gang):
            raise NotHere("the run came to its end before its processes had agreed on a stop")

    def check_line(self, gang: Gang, pattern: str, process: int = 0) -> None:
        """Checks that a process has said one thing in one line, without a traceback."""
        text = gang.text(process)
        if not re.search(pattern, text, re.M):
            raise Failed(f"no line says {pattern!r}: {self.ends(gang)}")
        if "Traceback" in text or "\n    @" in text:
            raise Failed(f"a traceback: {self.ends(gang)}")

    def ends(self, gang: Gang) -> str:
        """Returns the last lines of all processes of a run."""
        return " | ".join(
            f"[{index}: {gang.codes.get(index)}] " + gang.text(index)[-700:]
            for index in range(len(gang.pids))
        )

    def committed(self) -> list[int]:
        """Returns the steps that have a checkpoint now."""
        return world.steps_of(self.workdir)

    def recover(
        self,
        last: Gang | None = None,
        *,
        damaged: Iterable[int] = (),
        has_lines: bool = True,
    ) -> Gang:
        """Goes on without a fault, and checks the end against a run that nothing interrupted.

        `last` is the run until now. Steps of `damaged` cannot be gone on from. `has_lines`: the
        lines of metrics are compared too.
        """
        sound = [step for step in self.committed() if step not in set(damaged)]
        done = 0 if last is None else finished(last.text())
        began = time.monotonic()
        gang = self.start()
        newest = max(sound, default=0)
        gang.wait_for(lambda: "step " in gang.text() and finished(gang.text()) > newest)
        if newest < NUM_STEPS:
            self.seconds_to_step = time.monotonic() - began
        self.check_codes(gang, {0})
        found = re.search(r"^going on after step ([\d,]+)", gang.text(), re.M)
        start = int(found[1].replace(",", "")) if found else 0
        if newest < NUM_STEPS:
            self.steps_lost += max(newest - start, 0)
            self.steps_redone += max(done - start, 0)
        if self.steps_lost:
            raise Failed(f"step {newest} is saved, and it goes on after {start}: {self.ends(gang)}")
        self.compare(has_lines=has_lines)
        return gang

    def compare(self, *, has_lines: bool = True) -> None:
        """Checks that the run has ended in the bits of one that nothing interrupted."""
        count = max(self.num_processes, 2) if self.is_joined else self.num_processes
        reference = self.world.reference(count)
        bits, has_other_lines = world.differences(self.workdir, reference)
        self.differing_bits += bits
        if bits:
            raise Failed(f"{bits} bits differ")
        if has_lines and has_other_lines:
            raise Failed("the lines of metrics.jsonl differ")


def finished(text: str) -> int:
    """Returns the last step that a run has said to be finished; 0 for none."""
    found = re.findall(r"^step ([\d,]+)/", text, re.M)
    return int(found[-1].replace(",", "")) if found else 0
