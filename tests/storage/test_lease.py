"""The lease of a run's folder, on a store in memory that keeps generations as a bucket does."""

import json
import os
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import pytest
import tensorstore as ts

from jaxpretrain.config.errors import InputError
from jaxpretrain.storage import lease as leases
from jaxpretrain.storage.lease import Holder, Lease, Lost, leased

ME = Holder.this_process({})
ELSEWHERE = Holder("", "other", "another boot", 1, "5")
WHERE = Path("gs://bucket/run")


@pytest.fixture
def store() -> ts.KvStore:
    return ts.KvStore.open({"driver": "memory"}).result()


class _Opened(NamedTuple):
    store: ts.KvStore

    def result(self) -> ts.KvStore:
        return self.store


def put(store: ts.KvStore, holder: Holder) -> None:
    store.write(".lock", json.dumps(asdict(holder))).result()


def test_a_lease_is_taken_and_released(store: ts.KvStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # The context is what makes two stores in memory the same one.
    monkeypatch.setattr(leases.ts.KvStore, "open", lambda _: _Opened(store))
    with leased(WHERE) as lease:
        lease.check()
        assert json.loads(store[".lock"])["process"] == os.getpid()
    assert store.list().result() == []


def test_a_live_run_keeps_others_out(store: ts.KvStore) -> None:
    put(store, replace(ELSEWHERE, renewed=time.time() - 70))
    with pytest.raises(InputError, match=r"run: another process trains .* on other, last seen 70"):
        Lease(store, str(WHERE))


def test_the_dead_leave_it_after_five_minutes_and_the_same_job_at_once() -> None:
    now = 1e9
    here = replace(ELSEWHERE, renewed=now - 299)
    assert not here.leaves_to(ME, now)
    assert here.leaves_to(ME, now + 2)
    assert replace(here, job="SLURM job 7").leaves_to(replace(ME, job="SLURM job 7"), now)
    assert not replace(here, job="SLURM job 7").leaves_to(replace(ME, job="SLURM job 8"), now)


def test_a_dead_process_of_this_machine_leaves_it_and_a_live_one_of_the_same_job_does_not() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        born = leases._born(process.pid)
        other = replace(ME, process=process.pid, born=born, job="a", renewed=time.time())
        assert not other.leaves_to(replace(ME, job="a"), time.time())
        process.kill()
        process.wait()
    assert other.leaves_to(ME, time.time())


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "12"}, "SLURM job 12"),
        ({"JOB_COMPLETION_INDEX": "0"}, f"Kubernetes pod {ME.host}"),
        ({"JAXPRETRAIN_JOB": "mine", "SLURM_JOB_ID": "12"}, "mine"),
        ({}, ""),
    ],
)
def test_the_environment_names_the_job(environment: dict[str, str], job: str) -> None:
    assert Holder.this_process(environment).job == job


def test_it_is_renewed_and_a_lost_one_is_told(
    store: ts.KvStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    lease = Lease(store, "run")
    first = store.read(".lock").result().stamp.generation
    time.sleep(0.3)
    assert store.read(".lock").result().stamp.generation != first
    lease.check()
    put(store, ELSEWHERE)
    time.sleep(0.3)
    with pytest.raises(Lost):
        lease.check()
    lease.release()
    assert "another process has taken run; nothing is saved any more" in capfd.readouterr().err
    assert json.loads(store[".lock"])["host"] == "other"  # which is left to its holder


def test_a_write_whose_answer_was_lost_is_its_own(store: ts.KvStore) -> None:
    lease = Lease(store, "run")
    put(store, replace(lease._me, renewed=1.0))  # as if the write had come through
    lease._write(b"\x00an older one")
    lease.check()
    lease.release()
    assert store.list().result() == []


def test_a_lease_that_could_not_be_renewed_is_not_trusted(
    store: ts.KvStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(store, "run")
    monkeypatch.setattr(leases, "DEAD_SECONDS", 0.0)
    with pytest.raises(Lost, match="could not be renewed"):
        lease.check()
    lease.release()


def test_a_damaged_lease_is_one_line(store: ts.KvStore) -> None:
    store[".lock"] = b"{"
    with pytest.raises(InputError, match="run: its lease cannot be taken"):
        Lease(store, "run")
