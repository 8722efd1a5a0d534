"""Injects faults into small real runs from a seeded list, and counts how they end.

Two faults are made at once by default, so that one computes while the other waits.

make faults ARGS="--count=40 --seed=7 --output=FILE"
make faults ARGS="--merge a.json b.json --output=all.json"
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

# Read when JAX is imported.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "NPROC": "32",  # threads of the CPU client, so that collectives of virtual devices find some
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "COLUMNS": "10000",
    "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
}

from jaxpretrain.display.wording import count_of
from tests.faults import starts
from tests.faults.case import Case, Failed, NotHere
from tests.faults.kinds import KINDS, Kind
from tests.faults.starts import Hangs
from tests.faults.world import World


@dataclass
class Row:
    """The faults of one kind."""

    count: int = 0
    recovered: int = 0
    steps_lost: int = 0
    steps_redone: int = 0


@dataclass
class Result:
    """What came of a list of faults; results of several sittings add up."""

    count: int = 0
    recovered: int = 0
    """The faults that ended as the table of kinds says."""
    kinds: dict[str, Row] = field(default_factory=dict)
    steps_lost: int = 0
    """Committed steps that a start went back behind, though nothing had damaged them."""
    differing_bits: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    not_here: list[str] = field(default_factory=list)
    """Faults that this machine could not make, which do not count."""
    seconds_to_step: list[float] = field(default_factory=list)
    """Seconds from each start after a fault to its first finished step; the imports are shared."""
    core_seconds: dict[str, list[float]] = field(default_factory=dict)
    """Number of processes -> seconds of a core that each fault of so many took, checks included."""
    sittings: list[dict[str, Any]] = field(default_factory=list)

    def add(self, outcome: "Outcome", seed: int) -> None:
        """Counts one fault."""
        if outcome.not_here:
            self.not_here.append(f"{outcome.kind}: {outcome.problem}")
            return
        row = self.kinds.setdefault(outcome.kind, Row())
        for counts in (self, row):
            counts.count += 1
            counts.recovered += outcome.problem is None
            counts.steps_lost += outcome.case.steps_lost
        row.steps_redone += outcome.case.steps_redone
        self.differing_bits += outcome.case.differing_bits
        if outcome.case.seconds_to_step is not None:
            self.seconds_to_step.append(round(outcome.case.seconds_to_step, 2))
        spent = self.core_seconds.setdefault(str(outcome.case.num_processes), [])
        spent.append(round(outcome.core_seconds, 2))
        if outcome.problem is not None:
            failure = {"kind": outcome.kind, "problem": outcome.problem, "note": outcome.case.note}
            self.failures.append(failure | {"again": outcome.again(seed)})


@dataclass(frozen=True)
class Outcome:
    """One fault and how it ended."""

    number: int
    kind: str
    case: Case
    problem: str | None
    """Why it did not end as it must; None where it did."""
    not_here: bool
    """True where this machine cannot make the fault; `problem` says why."""
    seconds: float
    core_seconds: float
    """Seconds of a core that all its processes took."""

    def again(self, seed: int) -> str:
        """Returns the command that makes the fault again."""
        return f'make faults ARGS="--seed={seed} --first={self.number} --count=1"'

    def describe(self, seed: int) -> str:
        """Returns a line, and two more where it did not end as it must."""
        how = "not here" if self.not_here else "ok" if self.problem is None else "FAILED"
        count = self.case.num_processes
        where = f"{count} processes" if count > 1 else "1 process"
        spent = f"{self.seconds:.0f} s, {self.core_seconds:.1f} s of a core"
        line = f"{how}: {self.kind}, {where}, {spent}"
        if self.problem is None or self.not_here:
            return line
        return f"{line}\n  {self.case.note}: {self.problem}\n  again: {self.again(seed)}"


def merged(results: Sequence[Result]) -> Result:
    """Adds up the results of several sittings."""
    total = Result()
    for result in results:
        for name in ("count", "recovered", "steps_lost", "differing_bits"):
            setattr(total, name, getattr(total, name) + getattr(result, name))
        for name in ("failures", "not_here", "seconds_to_step", "sittings"):
            getattr(total, name).extend(getattr(result, name))
        for name, row in result.kinds.items():
            sums = total.kinds.setdefault(name, Row())
            for key, value in asdict(row).items():
                setattr(sums, key, getattr(sums, key) + value)
        for count, spent in result.core_seconds.items():
            total.core_seconds.setdefault(count, []).extend(spent)
    return total


def read(path: Path) -> Result:
    """Returns the result in a file."""
    document = json.loads(path.read_text())
    return Result(**document | {"kinds": {k: Row(**row) for k, row in document["kinds"].items()}})


def kind_of(number: int, seed: int, kinds: Sequence[Kind]) -> Kind:
    """Returns the kind of a fault; kinds are taken in turn."""
    return kinds[(number + seed) % len(kinds)]


def draw_of(number: int, seed: int, kind: Kind) -> tuple[Random, int]:
    """Returns the source of all that is random about a fault, and its number of processes."""
    draw = Random(f"{seed} {number}")
    return draw, draw.choice(kind.num_processes)


def befall(world: World, number: int, seed: int, kind: Kind) -> Outcome:
    """Makes one fault; call it in a process of its own, whose children are counted."""
    folder, began = world.root / f"fault-{number}", time.monotonic()
    folder.mkdir()
    case, problem, not_here = Case(world, folder, *draw_of(number, seed, kind)), None, False
    try:
        kind.make(case)
    except (Failed, Hangs, NotHere) as error:
        problem, not_here = str(error), isinstance(error, NotHere)
    except Exception:  # a mistake of the suite ends no sitting
        problem = traceback.format_exc()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    core_seconds = sum(usage.ru_utime + usage.ru_stime for usage in used)
    seconds = time.monotonic() - began
    return Outcome(number, kind.name, case, problem, not_here, seconds, core_seconds)


def run(
    world: World,
    numbers: Sequence[int],
    seed: int,
    kinds: Sequence[Kind] = KINDS,
    jobs: int = 1,
    output: Path | None = None,
) -> Result:
    """Makes the faults of some numbers, `jobs` at once; `output` gets the result so far."""
    result = Result()
    began = datetime.now(UTC)
    sitting = {"seed": seed, "first": numbers[0], "start": began.isoformat(timespec="minutes")}
    result.sittings.append(sitting)
    chosen = {number: kind_of(number, seed, kinds) for number in numbers}
    for count in sorted({draw_of(number, seed, kind)[1] for number, kind in chosen.items()}):
        world.reference(count)  # which all faults share
    faults = [partial(befall, world, number, seed, kind) for number, kind in chosen.items()]
    for position, outcome in enumerate(starts.side_by_side(faults, jobs), start=1):
        print(f"{position}/{len(numbers)} {outcome.describe(seed)}", file=sys.stderr, flush=True)
        result.add(outcome, seed)
        sitting["count"] = position
        sitting["minutes"] = round((datetime.now(UTC) - began).total_seconds() / 60, 1)
        if output is not None:
            output.write_text(json.dumps(asdict(result), indent=1) + "\n")
    return result


def table(result: Result) -> str:
    """Returns kind x count x recovered x steps, as text."""
    width = max(map(len, ["all", *result.kinds]))
    lines = [f"{'kind':<{width}}  count  recovered  steps lost  steps redone"]
    total = Row(result.count, result.recovered, result.steps_lost)
    total.steps_redone = sum(row.steps_redone for row in result.kinds.values())
    for name, row in [*result.kinds.items(), ("all", total)]:
        lines.append(
            f"{name:<{width}}  {row.count:>5}  {row.recovered:>9}  {row.steps_lost:>10}"
            f"  {row.steps_redone:>12}"
        )
    lines.append(f"{len(result.kinds)} kinds, {result.differing_bits} differing bits")
    for count, spent in sorted(result.core_seconds.items()):
        middle = f"{median(spent):.1f} s of a core, in the middle"
        lines.append(f"a fault of {count_of(int(count), 'process')}: {middle}")
    lines += [f"failed: {failure['kind']}: {failure['again']}" for failure in result.failures]
    lines += [f"could not be made here: {line}" for line in sorted(set(result.not_here))]
    return "\n".join(lines)


def main() -> int:
    """Runs the faults or merges files; returns 1 where a fault did not end as it must."""
    parser = argparse.ArgumentParser(prog="make faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=12, help="the number of faults")
    parser.add_argument("--seed", type=int, default=0, help="the seed of all that is drawn")
    parser.add_argument("--first", type=int, default=0, help="the number of the first fault")
    parser.add_argument("--kind", default="", help="only kinds whose names contain this")
    parser.add_argument("--jobs", type=int, default=2, help="the number of faults at once")
    parser.add_argument("--output", type=Path, help="a file for the result as JSON")
    parser.add_argument("--merge", type=Path, nargs="+", help="files of results to add up")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the runs")
    flags = parser.parse_args()
    if flags.merge:
        result = merged([read(path) for path in flags.merge])
    else:
        kinds = [kind for kind in KINDS if flags.kind in kind.name]
        # So that the folder is removed, and with it all processes end.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        root = Path(tempfile.mkdtemp(prefix="jaxpretrain-faults-"))
        try:
            world = World(root)
            world.prepare()
            numbers = range(flags.first, flags.first + flags.count)
            result = run(world, numbers, flags.seed, kinds, flags.jobs, flags.output)
        finally:
            if not flags.keep:
                shutil.rmtree(root, ignore_errors=True)
    print(table(result))
    if flags.output:
        flags.output.write_text(json.dumps(asdict(result), indent=1) + "\n")
    return int(result.recovered < result.count)


if __name__ == "__main__":
    sys.exit(main())
