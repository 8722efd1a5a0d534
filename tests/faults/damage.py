"""Faults of files, disks and buckets."""

import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults import points
from tests.faults.case import Case, Failed, NotHere
from tests.faults.points import PHASES, at, only

Damage = Callable[[Path, Case], None]


def truncate(path: Path, case: Case) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: case.draw.randrange(max(len(content), 1))])


def flip(path: Path, case: Case) -> None:
    content = bytearray(path.read_bytes())
    if not content:
        raise NotHere(f"{path.name} is empty")
    content[case.draw.randrange(len(content))] ^= 1 << case.draw.randrange(8)
    path.write_bytes(content)


def remove(path: Path, case: Case) -> None:
    path.unlink()


def empty(path: Path, case: Case) -> None:
    path.write_bytes(b"")


HARMS = (truncate, flip, remove, empty)
PLACES = ("arrays", "metadata", "experiment.json", "metrics.jsonl", "tokens", "compiled")
"""What is damaged."""


def damaged(case: Case, harm: Damage) -> None:
    """A file of a run that was told to stop at step 7 is damaged before it goes on."""
    place = case.draw.choice(PLACES)
    if place == "tokens":
        tokens = shutil.copytree(case.world.tokens, case.folder / "tokens")
        case.flags.append(f"--config.data.root={tokens}")
    if place == "compiled":
        compiled = shutil.copytree(case.world.compiled, case.folder / "xla")
        case.environment["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
    call = 7 if case.draw.random() < 0.7 else 4  # with two checkpoints, or one
    gang = case.start(lambda _: at(PHASES["step"], points.send(signal.SIGTERM), call=call))
    case.require_stopped(gang)
    workdir = Path(case.workdir)
    newest = case.committed()[-1]
    folder = workdir / "checkpoints" / str(newest)
    paths = {
        "arrays": [p for p in folder.rglob("d/*") if p.is_file()],
        "metadata": [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "d"],
        "experiment.json": [workdir / "experiment.json"],
        "metrics.jsonl": [*workdir.glob("*.jsonl")],
        "tokens": [p for p in (case.folder / "tokens").rglob("*") if p.is_file()],
        "compiled": sorted((case.folder / "xla").glob("*-cache")),
    }[place]
    path = case.draw.choice(sorted(paths))
    backup = path.read_bytes()
    harm(path, case)
    case.note = f"{harm.__name__} {path.relative_to(case.folder)}"
    if place in ("arrays", "metadata"):
        # Where nothing is read from it, the checkpoint is whole.
        case.recover(gang, damaged={newest})
    elif place == "compiled":
        case.recover(gang)
    else:
        again = case.start()
        codes = again.finish()
        if place == "metrics.jsonl":
            case.check_codes(again, {0})
            case.compare(has_lines=False)
            return
        if codes == [0] * len(codes):  # harmless
            case.compare()
            return
        case.check_codes(again, {2})
        # Where the file can be read, it may say that the run is another one.
        says = f"{re.escape(path.name)}|{place}|holds another run"
        case.check_line(again, rf"^error: .*({says})")
        path.write_bytes(backup)
        case.recover(gang)


def local_part_is_damaged(case: Case) -> None:
    """With checkpoints on local disks, the newest part of one process is damaged, or none is."""
    disk, count = case.folder / "disk", case.num_processes
    case.flags += [f"--config.checkpoint.local_dir={disk}", "--config.checkpoint.every=10 steps"]
    call = case.draw.randint(3, 9)
    killed = partial(at, points.LOCAL_SAVE, points.kill, call=call, after=True)
    gang = case.start(only(0, killed))
    case.check_codes(gang, {-signal.SIGKILL}, {1, 134, -signal.SIGABRT})
    parts = [next(disk.rglob(f"{process}-of-{count}")) for process in range(count)]
    steps = [{int(p.name) for p in part.iterdir() if p.name.isdecimal()} for part in parts]
    whole = sorted(set.intersection(*steps))
    path = parts[case.anyone()] / str(whole[-1]) / case.draw.choice(["arrays.bin", "document.json"])
    harm = case.draw.choice((None, *HARMS))
    case.note = f"killed after local save {call}, {whole} are whole"
    expected = whole[-1:]
    if harm is not None:
        case.note += f", {harm.__name__} {path.relative_to(disk)}"
        expected = [0, *whole][-2:-1]
        if path.suffix == ".json":  # or harmless
            expected += whole[-1:]
        harm(path, case)
    again = case.start()
    case.check_codes(again, {0})
    found = re.search(r"^going on after step (\d+)", again.text(), re.M)
    if (int(found[1]) if found else 0) not in expected:
        raise Failed(f"it does not go on after {expected}: {case.ends(again)}")
    case.compare()


@contextmanager
def small_disk(case: Case, megabytes: int = 24) -> Iterator[Path]:
    """Yields a small file system of its own; NotHere without the right to mount one."""
    disk = case.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise NotHere("a small disk takes the right to mount one")
    case.workdir = str(disk / "run")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def disk_fills(case: Case, *, for_a_while: bool = False) -> None:
    """The disk is full from some point on, until the run waits for room, or until it has ended."""
    phase = case.draw.choice(["step", "save begins", "save is written", "save is committed"])
    call, room = case.draw.randint(1, 3), case.draw.choice([0, 4096, 65_536])
    with small_disk(case) as disk:
        fill = points.fill(disk, room)
        case.environment["JAXPRETRAIN_STORAGE_SECONDS"] = "60" if for_a_while else "2"
        gang = case.start(only(0, partial(at, PHASES[phase], fill, call=call)))
        if for_a_while:
            words = "waits up to 60 s for room|is not saved: No space left"
            gang.wait_for(lambda: re.search(words, gang.text()) is not None)
            (disk / "filler").unlink(missing_ok=True)
            case.check_codes(gang, {0})
            case.compare(has_lines=False)
            return
        case.check_codes(gang, {1})
        case.check_line(gang, r"^error: .*could not be saved: .*(No space left|free)")
        (disk / "filler").unlink()
        case.recover(gang, has_lines=False)


def disk_is_full_at_the_start(case: Case) -> None:
    with small_disk(case) as disk:
        points.fill(disk, case.draw.choice([0, 4096, 20_000]))()
        gang = case.start()
        case.check_codes(gang, {1, 2})
        case.check_line(gang, r"^error: .*(No space left|free)")
        (disk / "filler").unlink()
        case.recover()


def read_only(case: Case) -> None:
    """The run's folder can be read alone when the run is to go on."""
    gang = case.start(lambda _: at(PHASES["step"], points.send(signal.SIGTERM), call=5))
    case.require_stopped(gang)
    bind = ["mount", "--bind", case.workdir, case.workdir]
    if subprocess.run(bind, capture_output=True).returncode:
        raise NotHere("a folder that can only be read takes the right to mount one")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", case.workdir], check=True)
        again = case.start()
        case.check_codes(again, {1, 2})
        case.check_line(again, "^error: .*Read-only file system")
    finally:
        subprocess.run(["umount", "-l", case.workdir], check=True)
    case.recover(gang)


def stale_lock(case: Case) -> None:
    """What a dead process has left does not keep a run out of its folder."""
    gang = case.start(only(0, partial(at, PHASES["step"], points.kill, call=7)))
    gang.finish()
    (Path(case.workdir) / ".lock").write_text("12345 on another host\n")
    for name in ("experiment.json.unfinished-12345", "checkpoints/4.orbax-checkpoint-tmp"):
        (Path(case.workdir) / name).touch()
    case.recover(gang)


def check_stacks(case: Case, processes: Collection[int]) -> None:
    """Checks that processes have left their stacks."""
    folder = Path(case.workdir) / "stacks"
    for process in processes:
        path = folder / f"{process}.txt"
        if not path.exists() or "thread MainThread:" not in path.read_text():
            raise Failed(f"there are no stacks of process {process}")
