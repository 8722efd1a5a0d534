"""Faults of runs in a bucket, which is a server on loopback in a process of its own."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bucket_server import bucket_server
from tests.faults import points
from tests.faults.case import Case
from tests.faults.points import PHASES, at


@contextmanager
def bucket(case: Case) -> Iterator[None]:
    """Has the run of a case in a bucket."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        with bucket_server() as server:
            os.write(writer, server.url.encode() + b"\n")
            time.sleep(1e6)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        url = pipe.readline().strip()
    there = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "JAXPRETRAIN_STORAGE_SECONDS": "60",
        "JAXPRETRAIN_CACHE": str(case.folder / "cache"),
    }
    before = {name: os.environ.get(name) for name in there}
    os.environ.update(there)  # for the checks, too
    case.environment.update(there)
    case.workdir = "gs://bucket/run"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def ends(case: Case, number: int, codes: set[int]) -> None:
    """A run in a bucket is killed or told to stop at any phase."""
    phases = ["step", "evaluation", "save is written", "save is committed", "old save is removed"]
    phase, after = case.draw.choice(phases), case.draw.random() < 0.5
    call = 3 if phase.startswith("old") else case.draw.randint(1, 4)
    case.note = f"{phase}, call {call}, {'after' if after else 'before'}"

    def arm(process: int) -> None:
        if process == 0:
            at(PHASES[phase], points.send(number), call=call, after=after)

    with bucket(case):
        gang = case.start(arm)
        case.check_codes(gang, codes, codes | {1, -6})
        case.recover(gang)
