"""Trains on a real SLURM of two virtual nodes on this machine, and ends the runs in every way.

    make slurm
    python scripts/slurm_test.py --only=kill

Needs Debian's packages slurm-wlm and munge, and root: apt-get install -y slurm-wlm munge. The
daemons run on loopback and are ended afterwards; /etc/hosts has two names more meanwhile. Each
scenario submits the script that `launch slurm` prints. Prints a table for docs/distributed.md.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpretrain.config.command import Parser, run
from jaxpretrain.config.errors import InputError
from jaxpretrain.storage.jsonl import read_lines

NODES = ("jpn1", "jpn2")
NUM_STEPS = 60
LIMIT_SECONDS = 900
"""The longest time that a scenario waits for something."""

_SLURM_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=20
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName={nodes} NodeHostname=localhost NodeAddr=127.0.0.1 Port=[26821-26822] CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

_CONFIG = """
import os
import time

from jaxpretrain.api import (
    AdamW, Checkpoint, Constant, Decoder, Eval, Experiment, Mesh, Monitor, TextData, Train
)
from jaxpretrain.parallel.mesh import Layout

put = Layout.put
steps = 0


def put_slowly(*args):
    # Steps take long enough that signals come in the middle of a run.
    global steps
    steps += 1
    if steps > int(os.environ.get("CRASH_AFTER", 10**9)):
        raise RuntimeError("a crash that comes again")
    time.sleep(float(os.environ.get("STEP_SECONDS", 0.2)))
    return put(*args)


Layout.put = put_slowly


def get_config():
    return Experiment(
        model=Decoder(
            vocab_size=61, embedding_rows=64, d_model=32, num_layers=1, num_heads=4, d_ff=64,
            dtype="float32", remat="none",
        ),
        data=TextData(root={root!r}, seq_len=32),
        optim=AdamW(schedule=Constant(peak=1e-3), epsilon=1e-3),
        train=Train(
            duration="{steps} steps",
            batch_size=8,
            compiler_options={{"xla_backend_optimization_level": "0"}},
        ),
        mesh=Mesh(replica=-1, fsdp=1),
        eval=Eval(every=0),
        checkpoint=Checkpoint(every="10 steps", keep_last=None),
        monitor=Monitor(every="1 steps", signals_every=0, tensorboard=False),
    )
"""


def main(argv: list[str]) -> int:
    """Runs the scenarios; returns 1 where one did not end as it should."""
    parser = Parser(prog="python scripts/slurm_test.py", description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of the scenarios to run")
    flags = parser.parse_args(argv)
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise InputError("needs root, and: apt-get install -y slurm-wlm munge")
    rows = []
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, cluster(Path(folder)) as slurm:
        for scenario in SCENARIOS:
            title = (scenario.__doc__ or "").partition(".")[0]
            is_wanted = flags.only in scenario.__name__ or scenario is uninterrupted
            if not is_wanted:
                continue
            start = time.monotonic()
            try:
                told = scenario(slurm)
            except Wrong as error:
                told = f"FAILED: {error}"
            rows.append(f"| {title} | {told} | {time.monotonic() - start:.0f} s |")
            print(rows[-1], flush=True)
    print("", "| What happens | How it ended | Took |", "| --- | --- | --- |", *rows, sep="\n")
    return 1 if any("FAILED" in row for row in rows) else 0


class Wrong(Exception):
    """A scenario did not end as it should; the message is one line."""


@dataclass(frozen=True)
class Job:
    """A job of the cluster."""

    number: int
    slurm: "Slurm"

    def show(self, field: str) -> str:
        """Returns a field of the job, such as JobState."""
        found = re.search(rf"\b{field}=(\S+)", self.describe())
        return found[1] if found else ""

    def describe(self) -> str:
        """Returns all that SLURM tells of the job, or of each job of an array."""
        return self.slurm.call("scontrol", "show", "job", str(self.number))

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Waits until something is true."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not until():
            if time.monotonic() > deadline:
                raise Wrong(f"{what} was waited for in vain; {self.log()[-300:]!r}")
            time.sleep(0.2)

    def wait_for_end(self) -> str:
        """Waits until the job has ended for good; returns its state."""
        last = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait(lambda: self.show("JobState") in last, "the end of the job")
        return self.show("JobState")

    def wait_for_step(self, workdir: Path, step: int) -> None:
        """Waits until a run has written a step to its metrics."""
        path = workdir / "metrics.jsonl"
        self.wait(lambda: path.exists() and _last_step(path) >= step, f"step {step}")

    def processes(self, node: str) -> list[int]:
        """Returns the training processes of the job on a node."""
        wanted = {
            f"SLURM_CONF={self.slurm.folder}/slurm.conf",
            f"SLURM_JOB_ID={self.number}",
            f"SLURMD_NODENAME={node}",
        }
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                values = {text.decode() for text in (path / "environ").read_bytes().split(b"\0")}
                command = (path / "cmdline").read_bytes()
                if wanted <= values and b"train" in command and b"--workdir" in command:
                    found.append(int(path.name))
        return found

    def log(self) -> str:
        """Returns what the job has printed."""
        files = sorted(self.slurm.folder.glob(f"slurm-{self.number}*.out"))
        return "".join(file.read_text(errors="replace") for file in files)


@dataclass(frozen=True)
class Slurm:
    """A cluster of two virtual nodes."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str, **variables: str) -> str:
        """Runs a command with the cluster; returns its output."""
        done = subprocess.run(
            command,
            env=self.environment | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Wrong(f"{' '.join(command[:4])}: {(done.stderr or done.stdout)[-300:]}")
        return done.stdout

    def submit(
        self, name: str, *flags: str, settings: tuple[str, ...] = (), **variables: str
    ) -> Job:
        """Submits a run by `launch slurm --submit`; its folder has the name."""
        command = [sys.executable, "-m", "jaxpretrain.launch", "slurm", "--nodes=2", "--submit"]
        command += [*flags, "--", f"--config={self.folder / 'tiny.py'}"]
        told = self.call(*command, f"--workdir={self.folder / name}", *settings, **variables)
        return Job(int(told.split()[-1]), self)

    def require_losses(self, name: str) -> str:
        """Compares the losses of a run with those of the run that nothing interrupted."""
        found, expected = (_losses(self.folder / run) for run in (name, "uninterrupted"))
        if found.keys() != expected.keys():
            raise Wrong(f"steps to {max(found, default=0)}, not to {max(expected)}")
        if not np.allclose(
            [*found.values()], [expected[step] for step in found], rtol=1e-6, atol=0
        ):
            raise Wrong("other losses than the uninterrupted run")
        return "same losses"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Yields a SLURM of two nodes while inside; its daemons are ended, and the names forgotten."""
    conf, munge, hosts = folder / "slurm.conf", folder / "munge", Path("/etc/hosts")
    before = hosts.read_text()
    folder.chmod(0o755)
    for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    nodes = f"{NODES[0][:-1]}[{NODES[0][-1]}-{NODES[-1][-1]}]"
    conf.write_text(_SLURM_CONF.format(folder=folder, nodes=nodes))
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    for path in (munge, munge / "key"):
        shutil.chown(path, "munge", "munge")
    _write_data(folder)
    parts = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    parts["seed-file"] = "seed"
    options = [f"--{option}={munge / name}" for option, name in parts.items()]
    daemons = [["runuser", "-u", "munge", "--", "munged", "--foreground", *options]]
    daemons += [["slurmctld", "-D", "-f", str(conf)]]
    daemons += [["slurmd", "-D", "-N", node, "-f", str(conf)] for node in NODES]
    environment = os.environ | {
        "SLURM_CONF": str(conf),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "JAX_PLATFORMS": "cpu",
    }
    slurm, started = Slurm(folder, environment), []
    try:
        hosts.write_text(f"{before.rstrip()}\n127.0.0.1 {' '.join(NODES)}\n")
        for command in daemons:
            with (folder / "daemons.log").open("ab") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            time.sleep(2.0)
        yield slurm
    finally:
        with contextlib.suppress(Wrong):
            slurm.call("scancel", "--user=root")
            time.sleep(3.0)
        for daemon in reversed(started):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10.0)
        hosts.write_text(before)


def _write_data(folder: Path) -> None:
    """Writes token files and the config that trains on them."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20000), ("validation", 300)):
        (folder / "tokens" / split).mkdir(parents=True)
        tokens = random.integers(61, size=count).astype("<u2")
        tokens.tofile(folder / "tokens" / split / "part.npy")
    text = _CONFIG.format(root=str(folder / "tokens"), steps=NUM_STEPS)
    (folder / "tiny.py").write_text(text)


def _last_step(path: Path) -> int:
    return max((line["step"] for line in read_lines(path)), default=0)


def _losses(workdir: Path) -> dict[int, float]:
    lines = read_lines(workdir / "metrics.jsonl")
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def uninterrupted(slurm: Slurm) -> str:
    """A run of two nodes to its end."""
    job = slurm.submit("uninterrupted")
    _require(job.wait_for_end(), "COMPLETED", job)
    if "2 processes, by SLURM, coordinator jpn1:" not in job.log():
        raise Wrong("the processes did not meet by SLURM")
    if max(_losses(slurm.folder / "uninterrupted")) != NUM_STEPS:
        raise Wrong("it did not get to its last step")
    return f"exit code 0, {NUM_STEPS} steps"


def time_limit(slurm: Slurm) -> str:
    """The time limit, with `--time=2 --notice=60`."""
    job = slurm.submit("limited", "--time=2", "--notice=60", STEP_SECONDS="2")
    _require(job.wait_for_end(), "COMPLETED", job)
    if int(job.show("Restarts")) < 1 or "stopped and saved" not in job.log():
        raise Wrong(f"it was not requeued: {job.log()[-300:]!r}")
    times = job.show("Restarts")
    return f"saved, exit code 75, requeued {times} times; {slurm.require_losses('limited')}"


def scancel_signal(slurm: Slurm) -> str:
    """`scancel --signal=TERM`."""
    job = slurm.submit("signalled")
    job.wait_for_step(slurm.folder / "signalled", 15)
    slurm.call("scancel", "--signal=TERM", str(job.number))
    _require(job.wait_for_end(), "COMPLETED", job)
    if job.show("Restarts") != "1":
        raise Wrong(f"it was requeued {job.show('Restarts')} times")
    return f"saved, exit code 75, requeued once; {slurm.require_losses('signalled')}"


def scancel(slurm: Slurm) -> str:
    """`scancel`, and the same command again."""
    job = slurm.submit("cancelled")
    job.wait_for_step(slurm.folder / "cancelled", 15)
    slurm.call("scancel", str(job.number))
    _require(job.wait_for_end(), "CANCELLED", job)
    time.sleep(10.0)
    if job.show("JobState") != "CANCELLED" or job.processes(NODES[0]):
        raise Wrong("it came back")
    saved = max(int(path.name) for path in (slurm.folder / "cancelled/checkpoints").glob("[0-9]*"))
    again = slurm.submit("cancelled")
    _require(again.wait_for_end(), "COMPLETED", again)
    return f"saved step {saved}, not requeued; then {slurm.require_losses('cancelled')}"


def kill_process(slurm: Slurm) -> str:
    """`kill -9` of one process."""
    job = slurm.submit("killed")
    job.wait_for_step(slurm.folder / "killed", 25)
    os.kill(job.processes(NODES[1])[0], signal.SIGKILL)
    return _restarted(job, "killed")


def kill_node(slurm: Slurm) -> str:
    """`kill -9` of all processes of a node, SLURM's for the step too."""
    job = slurm.submit("node")
    job.wait_for_step(slurm.folder / "node", 25)
    _lose_node(job)
    return _restarted(job, "node")


def bad_input(slurm: Slurm) -> str:
    """A run that exits with 2."""
    job = slurm.submit("bad", settings=("--config.data.root=/nowhere",))
    _require(job.wait_for_end(), "FAILED", job)
    if (job.show("ExitCode"), job.show("Restarts")) != ("2:0", "0"):
        raise Wrong(f"exit code {job.show('ExitCode')}, {job.show('Restarts')} restarts")
    if job.log().count("error: /nowhere: no such directory") != 1:
        raise Wrong(f"the line is missing: {job.log()[-300:]!r}")
    return "one line, exit code 2, not started again"


def crash(slurm: Slurm) -> str:
    """A lost node, then a crash that comes again, before anything is saved: `--max_restarts=2`."""
    job = slurm.submit("crash", "--max_restarts=2", CRASH_AFTER="5", STEP_SECONDS="3")
    job.wait_for_step(slurm.folder / "crash", 1)
    _lose_node(job)
    _require(job.wait_for_end(), "FAILED", job)
    starts, comment = job.log().count("2 processes, by SLURM"), "1 failed at step -1"
    if (starts, job.show("Restarts")) != (3, "1") or f"Comment={comment}" not in job.describe():
        raise Wrong(f"{starts} starts: {job.log()[-300:]!r}")
    code = job.show("ExitCode").partition(":")[0]
    return f"requeued as `{comment}`, given up after {starts} starts, exit code {code}"


def sweep(slurm: Slurm) -> str:
    """A sweep of four runs as a job array."""
    flags = [f"--config={slurm.folder / 'tiny.py'}", "--grid.model.d_ff=64,96", "--seeds=2"]
    command = [sys.executable, "-m", "jaxpretrain.sweep", *flags]
    here, there = slurm.folder / "sweep-here", slurm.folder / "sweep"
    told = slurm.call(*command, f"--workdir={there}", "--launcher=slurm", "--submit")
    job = Job(int(re.findall(r"Submitted batch job (\d+)", told)[-1]), slurm)
    done = {"COMPLETED", "FAILED", "CANCELLED"}
    job.wait(lambda: set(_states(job)) <= done, "the end of the array")
    _require(" ".join(sorted(set(_states(job)))), "COMPLETED", job)
    slurm.call(*command, f"--workdir={here}", STEP_SECONDS="0")
    slurm.call(*command, f"--workdir={there}")  # all runs are complete: it answers
    runs = sorted(path.parent.relative_to(here) for path in here.glob("*/*/metrics.jsonl"))
    if len(runs) != 4 or any(_losses(here / run) != _losses(there / run) for run in runs):
        raise Wrong("other losses than the same sweep without SLURM")
    document = json.loads((there / "sweep.json").read_text())
    if {run["state"] for arm in document["arms"] for run in arm["runs"]} != {"done"}:
        raise Wrong("the sweep does not know that its runs are complete")
    return "four jobs, exit code 0; the same losses as without SLURM; the same command answers"


SCENARIOS = (
    uninterrupted,
    bad_input,
    scancel_signal,
    scancel,
    kill_process,
    kill_node,
    crash,
    sweep,
    time_limit,
)


def _restarted(job: Job, name: str) -> str:
    _require(job.wait_for_end(), "COMPLETED", job)
    codes = re.findall(r"^exit code (\d+) at step (\d+); 0 failed", job.log(), re.MULTILINE)
    is_requeued = job.show("Restarts") != "0"
    if not codes and not is_requeued:
        raise Wrong(f"it was not started again: {job.log()[-300:]!r}")
    told = ", ".join(f"exit code {code} at step {step}" for code, step in codes)
    where = "requeued" if is_requeued else "again inside of the job"
    return f"{told or 'ended by SLURM'}, {where}; {job.slurm.require_losses(name)}"


def _states(job: Job) -> list[str]:
    return re.findall(r"JobState=(\S+)", job.describe())


def _lose_node(job: Job) -> None:
    """Kills all processes of the job on the second node, also those of SLURM for the step."""
    tasks = job.processes(NODES[1])
    for pid in {*map(_parent, tasks), *tasks}:
        os.kill(pid, signal.SIGKILL)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _require(state: str, expected: str, job: Job) -> None:
    if state != expected:
        raise Wrong(f"{state}, not {expected}: {job.log()[-400:]!r}")


if __name__ == "__main__":
    run(main)
