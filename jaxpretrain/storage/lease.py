"""A lease: an object in a bucket that keeps other runs out of a folder.

It is written with a precondition on its generation, so of two that take it at once one fails. Its
holder renews it each minute. Another may take it when it has not been renewed for five minutes,
when the process that held it is known to be dead, and at once where it is the same job that starts
again, so that a requeued job never waits for itself.
"""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tensorstore as ts

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.serialize import checked, parse_json
from jaxpretrain.storage.paths import kvstore

RENEW_SECONDS = 60.0
DEAD_SECONDS = 300.0
_KEY = ".lock"
_ANSWER_SECONDS = 60.0
"""Seconds that one request of the lease may take."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease."""

    job: str
    """Name of the job in its launcher; "" where there is none."""
    host: str
    machine: str
    """The place whose processes are numbered together; "" where the system does not tell."""
    process: int
    born: str
    """The time at which the process started, in the system's ticks; "" where it is not there."""
    renewed: float = 0.0
    """Unix time of the last renewal."""

    @classmethod
    def this_process(cls, environment: Mapping[str, str] = os.environ) -> "Holder":
        """Returns this process, with the job that the environment names."""
        host = platform.node()
        job = environment.get("JAXPRETRAIN_JOB", "")
        if not job and "SLURM_JOB_ID" in environment:
            job = f"SLURM job {environment['SLURM_JOB_ID']}"
        if not job and "JOB_COMPLETION_INDEX" in environment:
            job = f"Kubernetes pod {host}"  # of an indexed job, whose pods keep their names
        return cls(job, host, _machine(), os.getpid(), _born(os.getpid()))

    def is_same_process(self, other: "Holder") -> bool:
        """Returns true where both are one process, at whatever times."""
        return replace(self, renewed=0.0) == replace(other, renewed=0.0)

    def leaves_to(self, other: "Holder", now: float) -> bool:
        """Returns true where `other` may take the lease at a unix time."""
        if now - self.renewed > DEAD_SECONDS or self.is_same_process(other):
            return True
        if self.machine and self.machine == other.machine:  # where it can be looked for
            return _born(self.process) != self.born
        return self.job == other.job != ""


class Lost(OSError):
    """The lease is no longer this process's: another run may have the folder."""


class Lease:
    """A held lease, which a thread renews until it is released."""

    def __init__(self, store: ts.KvStore, where: str) -> None:
        """Takes the lease of a store, which is the folder `where` as the user has named it.

        Raises InputError where another process holds it, or the store refuses.
        """
        self._store, self._where = store, where
        self._me = Holder.this_process()
        self._ended = threading.Event()
        self._generation: bytes | None = None
        self._renewed = -DEAD_SECONDS
        try:
            self._take()
        except Lost:
            raise InputError(f"{where}: another process has just begun to train in it") from None
        except (ValueError, TimeoutError) as error:  # all that TensorStore raises
            raise InputError(f"{where}: its lease cannot be taken: {_reason(error)}") from error
        self._thread = threading.Thread(target=self._renew_often, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises Lost where another process has the lease, or may have taken it by now."""
        if self._generation is None:
            raise Lost(None, f"another process has taken {self._where}")
        if time.monotonic() - self._renewed > DEAD_SECONDS:
            raise Lost(None, f"{self._where}: its lease could not be renewed for five minutes")

    def release(self) -> None:
        """Ends the lease, so that others need not wait."""
        self._ended.set()
        self._thread.join()
        if self._generation is not None:
            with suppress(ValueError, TimeoutError):  # it ends by itself
                self._store.write(_KEY, None, if_equal=self._generation).result(_ANSWER_SECONDS)

    def _take(self) -> None:
        found, holder = self._read()
        if holder is not None and not holder.leaves_to(self._me, time.time()):
            seconds = max(0.0, time.time() - holder.renewed)
            raise InputError(
                f"{self._where}: another process trains in it ({holder.job or 'process'}, "
                f"{holder.process} on {holder.host}, last seen {seconds:.0f} s ago); one that has "
                f"died counts as gone after {DEAD_SECONDS / 60:.0f} minutes"
            )
        self._write(found)

    def _read(self) -> tuple[bytes, Holder | None]:
        """Returns the generation of the lease, and its holder where there is one."""
        found = self._store.read(_KEY).result(_ANSWER_SECONDS)
        if found.state != "value":
            return found.stamp.generation, None
        holder = checked(Holder, parse_json(found.value), f"{self._where}/{_KEY}")
        return found.stamp.generation, holder

    def _write(self, generation: bytes) -> None:
        """Writes the lease over a generation of it; raises Lost where another is there."""
        began = time.monotonic()
        document: dict[str, Any] = asdict(self._me) | {"renewed": round(time.time(), 1)}
        text = json.dumps(document)
        new = self._store.write(_KEY, text, if_equal=generation).result(_ANSWER_SECONDS).generation
        if not new:  # the precondition has failed; perhaps for a write of ours without an answer
            new, holder = self._read()
            if holder is None or not holder.is_same_process(self._me):
                self._generation = None
                raise Lost(None, f"another process has taken {self._where}")
        self._generation, self._renewed = new, began

    def _renew_often(self) -> None:
        while not self._ended.wait(RENEW_SECONDS) and self._generation is not None:
            try:
                self._write(self._generation)
            except Lost as error:
                print(f"warning: {error.strerror}; nothing is saved any more", file=sys.stderr)
            except (ValueError, TimeoutError, InputError) as error:
                reason = f"{self._where}: its lease is not renewed: {_reason(error)}"
                print(f"warning: {reason}", file=sys.stderr)


@contextmanager
def leased(folder: Path) -> Iterator[Lease]:
    """Yields the lease of a folder in a bucket, and releases it at the end."""
    lease = Lease(ts.KvStore.open(kvstore(folder)).result(), f"--workdir={folder}")
    try:
        yield lease
    finally:
        lease.release()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or "no answer"


def _machine() -> str:
    """Returns this boot of this machine, and the part of its processes that see each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(process: int) -> str:
    """Returns when a process started; "" where it is not there, or the system does not tell."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
