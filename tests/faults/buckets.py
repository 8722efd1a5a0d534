"""Faults of runs in a bucket, which is a server on loopback in a process of its own."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import unquote

from jaxpretrain.storage.paths import list_files, parse
from tests.bucket_server import Fault, bucket_server
from tests.faults import damage, points, starts
from tests.faults.case import Case
from tests.faults.points import PHASES, at, only


@contextmanager
def bucket(case: Case, fault: Fault | None = None) -> Iterator[Callable[[], None]]:
    """Has the run of a case in a bucket; yields what ends the fault of its server.

    `fault` is called in the server's process. All further processes of this one use the bucket.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        with bucket_server() as server:
            server.fault = fault or server.fault

            def mend(*_: object) -> None:
                server.fault = lambda method, path: None

            signal.signal(signal.SIGUSR1, mend)
            os.write(writer, server.url.encode() + b"\n")
            while True:
                signal.pause()
    os.close(writer)
    with os.fdopen(reader) as pipe:
        url = pipe.readline().strip()
    os.environ |= {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "JAXPRETRAIN_STORAGE_SECONDS": "60",
        "JAXPRETRAIN_CACHE": str(case.folder / "cache"),
    }
    case.environment["JAXPRETRAIN_CACHE"] = os.environ["JAXPRETRAIN_CACHE"]
    case.workdir = "gs://bucket/run"
    try:
        yield lambda: os.kill(pid, signal.SIGUSR1)
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def ends(case: Case, number: int, codes: set[int]) -> None:
    """A run in a bucket is killed or told to stop at any phase."""
    phases = ["step", "evaluation", "save is written", "save is committed", "old save is removed"]
    phase, after = case.draw.choice(phases), case.draw.random() < 0.5
    if number == signal.SIGKILL:
        call = 3 if phase.startswith("old") else case.draw.randint(1, 4)
    else:  # in time to stop: in the last save, the run only ends
        call = case.draw.randint(1, 2)
    case.note = f"{phase}, call {call}, {'after' if after else 'before'}"

    arm = partial(at, PHASES[phase], points.send(number), call=call, after=after)
    with bucket(case):
        gang = case.start(only(0, arm))
        case.check_codes(gang, codes, codes | {1, -6})
        case.recover(gang)


def server_fails(case: Case) -> None:
    """For some seconds the server refuses, cuts or delays every third request."""
    how, first = case.draw.choice(["503", "cut", "slow"]), case.draw.randrange(150)
    case.note = f"{how} from request {first}"
    count, since = 0, 0.0

    def fault(method: str, path: str) -> str | None:
        nonlocal count, since
        count += 1
        if count == first + 1:
            since = time.monotonic()
        is_on = count > first and time.monotonic() < since + 6 and count % 3 == 0
        return how if is_on else None

    with bucket(case, fault):
        gang = case.start()
        case.check_codes(gang, {0})
        case.compare()


def server_refuses(case: Case) -> None:
    """From one step on the server takes no part of a checkpoint, until after the end of the run."""
    step = case.draw.choice([3, 6, 12])
    how = case.draw.choice(["403", "503"])
    case.note = f"{how} from step {step} on"
    refused = re.compile(rf"checkpoints/({'|'.join(str(s) for s in (3, 6, 9, 12) if s >= step)})/")

    def fault(method: str, path: str) -> str | None:
        return how if method != "GET" and refused.search(unquote(path)) else None

    with bucket(case, fault) as mend:
        case.environment["JAXPRETRAIN_STORAGE_SECONDS"] = "3"
        gang = case.start()
        case.check_codes(gang, {1}, {1})
        case.check_line(gang, r"^error: .*could not be saved: ")
        mend()
        case.environment["JAXPRETRAIN_STORAGE_SECONDS"] = "60"
        case.recover(gang, has_lines=False)


def copy_is_damaged(case: Case) -> None:
    """The data lies in the bucket, and what this machine has copied of it is damaged."""
    with bucket(case):
        starts.in_child(_upload, case)
        case.flags.append("--config.data.root=gs://bucket/tokens")
        gang = case.start(lambda _: at(PHASES["step"], points.send(signal.SIGTERM), call=5))
        case.require_stopped(gang)
        copies = (case.folder / "cache" / "buckets").rglob("*")
        path = case.draw.choice(sorted(path for path in copies if path.is_file()))
        harm = case.draw.choice(damage.HARMS)
        harm(path, case)
        case.note = f"{harm.__name__} {path.relative_to(case.folder)}"
        case.recover(gang)


def _upload(case: Case) -> None:
    for file in list_files(case.world.tokens):
        to = parse("gs://bucket/tokens") / str(file.relative_to(case.world.tokens))
        to.write_bytes(file.read_bytes())
