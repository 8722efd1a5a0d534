"""MLflow itself: its local file, and its own server on the loopback interface."""

import contextlib
import http.server
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.storage.jsonl import drop_after, read_lines
from jaxpretrain.track.contract import Identity, connect
from jaxpretrain.track.follow import send
from tests.track.conftest import write_steps

mlflow = pytest.importorskip("mlflow")

FINDING = Finding("loss_spike", 7, 9, "The loss jumped.", "Wait.", {}, severity="error")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def check_run(workdir: Path, uri: str) -> None:
    """Compares the only run in a place with the record, bit for bit, after two sessions."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("jaxpretrain")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("nano", "FINISHED")
    assert run.data.tags["group"] == "nano"
    assert run.data.params["optim.schedule.peak"] == "0.001"
    expected: dict[str, list[tuple[int, float, int]]] = {}
    for line in read_lines(workdir / "metrics.jsonl"):
        for name, value in line.items():
            if name not in ("step", "time") and value is not None:
                expected.setdefault(name, []).append((line["step"], value))
    assert run.data.metrics.keys() == expected.keys()
    for name, values in expected.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((metric.step, metric.value) for metric in history) == values, name
    content = Path(client.download_artifacts(run.info.run_id, ""))
    assert {path.name for path in content.iterdir()} >= {"experiment.json", "report.html"}
    assert (content / "samples" / "0" / "00000015.txt").read_text() == "a <b>|15"
    picture = workdir / "pictures" / "digits" / "reconstructions" / "00000010.png"
    kept = content / "pictures" / "digits" / "reconstructions" / picture.name
    assert kept.read_bytes() == picture.read_bytes()
    table = json.loads((content / "eval" / "table" / "00000020.json").read_text())
    assert table == {"columns": ["subject", "metric", "value"], "data": [["sotu", "loss", 0.05]]}


def two_sessions(workdir: Path) -> None:
    """Sends a run that goes on from step 6 after step 10."""
    send(workdir, "mlflow")
    drop_after(workdir / "metrics.jsonl", 6)
    write_steps(workdir, range(7, 21))
    send(workdir, "mlflow")


def test_a_local_file_has_the_record_bit_for_bit_and_once(workdir: Path) -> None:
    two_sessions(workdir)
    check_run(workdir, f"sqlite:///{workdir / 'trackers' / 'mlflow.db'}")
    assert sorted(p.name for p in (workdir / "trackers").iterdir()) == [
        ".mlflow.lock",
        "mlflow-artifacts",
        "mlflow.db",
        "mlflow.json",
        "report.html",
    ]


def test_a_file_of_many_runs_has_the_artifacts_beside_it(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow itself would put them into the current directory."""
    shared, here = tmp_path / "shared", tmp_path / "here"
    shared.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared / 'all.db'}")
    two_sessions(workdir)
    check_run(workdir, f"sqlite:///{shared / 'all.db'}")
    assert {path.name for path in shared.iterdir()} == {"all.db", "mlflow-artifacts"}
    assert not list(here.iterdir())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of MLflow's own server, which keeps its files in a folder of the test."""
    if importlib.util.find_spec("flask") is None:
        pytest.skip("the server of MLflow needs flask")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    store = [
        f"--backend-store-uri=sqlite:///{folder}/db",
        f"--artifacts-destination={folder}/files",
    ]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *store, "--workers=1"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                if (
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status
                    == 200
                ):
                    break
            time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "server.log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_its_own_server_has_the_record_bit_for_bit_and_once(
    workdir: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    two_sessions(workdir)
    check_run(workdir, server)
    assert not (workdir / "trackers" / "mlflow.db").exists()


def test_findings_are_tags_and_names_that_are_refused_are_changed(tmp_path: Path) -> None:
    run = connect("mlflow", tmp_path).open(Identity("k", "n", "g", {"arm": "peak", "seed": "3"}))
    run.alert(FINDING)
    run.text(3, "a+b", "text")
    run.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (made,) = client.search_runs([client.get_experiment_by_name("jaxpretrain").experiment_id])
    assert made.data.tags["finding loss_spike"] == "error: step 7: The loss jumped. Wait."
    assert (made.data.tags["arm"], made.data.tags["seed"]) == ("peak", "3")
    assert [file.path for file in client.list_artifacts(made.info.run_id)] == ["a_b"]


class _Refuses(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_user_who_is_refused_is_one_line_and_no_answer_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=refusing.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{refusing.server_port}")
    with pytest.raises(InputError, match="refuses the user or the token: .*401"):
        connect("mlflow", tmp_path).check()
    refusing.shutdown()
    refusing.server_close()
    with pytest.raises(mlflow.exceptions.MlflowException):
        connect("mlflow", tmp_path).check()
