"""Injects faults into small real runs from a seeded list, and counts how they end.

make faults ARGS="--count=40 --seed=7 --output=FILE"
make faults ARGS="--merge a.json b.json --output=all.json"
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
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
    sittings: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: Kind, case: Case, failure: dict[str, Any] | None) -> None:
        """Counts one fault."""
        row = self.kinds.setdefault(kind.name, Row())
        for counts in (self, row):
            counts.count += 1
            counts.recovered += failure is None
            counts.steps_lost += case.steps_lost
        row.steps_redone += case.steps_redone
        self.differing_bits += case.differing_bits
        if case.seconds_to_step is not None:
            self.seconds_to_step.append(round(case.seconds_to_step, 2))
        if failure is not None:
            self.failures.append(failure)


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
    return total


def read(path: Path) -> Result:
    """Returns the result in a file."""
    document = json.loads(path.read_text())
    return Result(**document | {"kinds": {k: Row(**row) for k, row in document["kinds"].items()}})


def befall(
    kind: Kind, world: World, number: int, seed: int, folder: Path
) -> tuple[Case, str | None]:
    """Makes one fault; returns its case, and why it did not end as it must."""
    draw = Random(f"{seed} {number}")
    case = Case(world, folder, draw, draw.choice(kind.num_processes))
    try:
        kind.make(case)
    except (Failed, Hangs) as error:
        return case, str(error)
    return case, None


def run(
    world: World,
    numbers: Sequence[int],
    seed: int,
    kinds: Sequence[Kind] = KINDS,
    output: Path | None = None,
) -> Result:
    """Makes the faults of some numbers, one after the other; `output` gets the result so far."""
    result = Result()
    began = datetime.now(UTC)
    sitting = {"seed": seed, "first": numbers[0], "start": began.isoformat(timespec="minutes")}
    result.sittings.append(sitting)
    for position, number in enumerate(numbers, start=1):
        kind = kinds[(number + seed) % len(kinds)]
        folder, started = world.root / f"fault-{number}", time.monotonic()
        folder.mkdir()
        again = f'make faults ARGS="--seed={seed} --first={number} --count=1"'
        try:
            case, problem = befall(kind, world, number, seed, folder)
        except NotHere as error:
            result.not_here.append(f"{kind.name}: {error}")
            shutil.rmtree(folder)
            continue
        failure = None
        if problem is not None:
            failure = {"kind": kind.name, "problem": problem, "note": case.note, "again": again}
            print(f"{kind.name} ({case.note}): {problem}\n  again: {again}", file=sys.stderr)
        result.add(kind, case, failure)
        seconds, how = time.monotonic() - started, "ok" if failure is None else "FAILED"
        where = f"{case.num_processes} processes" if case.num_processes > 1 else "1 process"
        line = f"{position}/{len(numbers)} {how}: {kind.name}, {where}, {seconds:.0f} s"
        print(line, file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
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
    parser.add_argument("--output", type=Path, help="a file for the result as JSON")
    parser.add_argument("--merge", type=Path, nargs="+", help="files of results to add up")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the runs")
    flags = parser.parse_args()
    if flags.merge:
        result = merged([read(path) for path in flags.merge])
    else:
        kinds = [kind for kind in KINDS if flags.kind in kind.name]
        root = Path(tempfile.mkdtemp(prefix="jaxpretrain-faults-"))
        try:
            world = World(root)
            world.prepare()
            numbers = range(flags.first, flags.first + flags.count)
            result = run(world, numbers, flags.seed, kinds, flags.output)
        finally:
            if not flags.keep:
                shutil.rmtree(root, ignore_errors=True)
    print(table(result))
    if flags.output:
        flags.output.write_text(json.dumps(asdict(result), indent=1) + "\n")
    return int(result.recovered < result.count)


if __name__ == "__main__":
    sys.exit(main())
