"""W&B itself, offline: what a session leaves is read back from its transaction logs."""

import http.server
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.findings import Finding
from jaxpretrain.storage.jsonl import drop_after, read_lines
from jaxpretrain.track.contract import Identity, connect
from jaxpretrain.track.follow import send
from tests.track.conftest import write_steps

wandb = pytest.importorskip("wandb")

from wandb.proto import wandb_internal_pb2  # noqa: E402

FINDING = Finding("loss_spike", 7, 9, "The loss jumped.", "Wait.", {}, severity="error")
BLOCK = 32768  # of the log format, which is that of LevelDB behind a head of 7 bytes


def records(path: Path) -> Iterator[Any]:
    """W&B's own records in a transaction log."""
    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def logged(workdir: Path, kind: str) -> list[Any]:
    """All records of a kind in the logs of a run, in the order of its sessions."""
    logs = sorted((workdir / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    return [
        getattr(record, kind)
        for log in logs
        for record in records(log)
        if record.WhichOneof("record_type") == kind
    ]


def history(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a run."""
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in row.item}
        for row in logged(workdir, "history")
    ]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    wandb.teardown()


def test_offline_files_have_the_record_bit_for_bit_and_once(workdir: Path) -> None:
    send(workdir, "wandb")
    drop_after(workdir / "metrics.jsonl", 6)
    write_steps(workdir, range(7, 21))  # it goes on from step 6
    send(workdir, "wandb")
    found = [
        (row["step"], row["_timestamp"] if name == "train/loss" else None, name, value)
        for row in history(workdir)
        for name, value in row.items()
        if name.startswith(("train/", "run/"))
        or name in ("eval/sotu/loss", "eval/sotu/bits_per_byte")
    ]
    there = [(step, name, value) for step, _, name, value in found]
    expected = [
        (line["step"], name, value)
        for line in read_lines(workdir / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("step", "time") and value is not None
    ]
    assert len(set(there)) == len(there) and set(there) == set(expected)
    times = {line["step"]: line["time"] for line in read_lines(workdir / "metrics.jsonl")}
    assert all(time == times[step] for step, time, *_ in found if time is not None and step > 10)
    (run_id,) = {run.run_id for run in logged(workdir, "run")}
    assert run_id == json.loads((workdir / "trackers" / "wandb.json").read_text())["offline"]["key"]


def test_a_run_has_its_config_group_media_and_report(workdir: Path) -> None:
    send(workdir, "wandb")
    run = logged(workdir, "run")[0]
    assert (run.project, run.display_name, run.run_group) == ("jaxpretrain", "nano", "nano")
    config = {
        item.key: json.loads(item.value_json)
        for record in logged(workdir, "config")
        for item in record.update
    }
    assert config["optim"] == {"schedule": {"peak": 1e-3}} and config["seed"] == 0
    assert config["experiment"] == {"versions": {"jax": "1"}}
    rows = history(workdir)
    kinds = {
        name.rpartition("/")[0]: x for row in rows for name, x in row.items() if "_type" in name
    }
    assert kinds == {
        "samples/0": "html-file",
        "digits/reconstructions": "image-file",
        "eval/table": "table-file",
    }
    axes = {metric.glob_name: metric.step_metric for metric in logged(workdir, "metric")}
    assert axes["*"] == "step"
    reports = [x for x in logged(workdir, "artifact") if x.type == "report"]
    assert [entry.path for entry in reports[0].manifest.contents] == ["report.html"]
    media = (workdir / "trackers" / "wandb").glob("*/files/media/html/samples/*.html")
    assert any("a &lt;b&gt;|5" in file.read_text() for file in media)


def test_findings_are_alerts_and_the_environment_of_wandb_holds(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_RUN_GROUP", "team")
    send(workdir, "wandb")
    service = connect("wandb", workdir / "trackers")
    run = service.open(Identity("other", "n", "g", {"arm": "peak", "seed": "3"}))
    run.alert(FINDING)
    run.close()
    (alert,) = logged(workdir, "alert")
    assert (alert.title, alert.level) == ("Loss spike", "ERROR")
    assert alert.text == "Step 7: The loss jumped. What to do: Wait."
    made = next(run for run in logged(workdir, "run") if run.run_id == "other")
    assert (made.project, made.run_group, made.job_type) == ("ours", "team", "peak")
    assert list(made.tags) == ["arm peak", "seed 3"]


class _Refuses(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that refuses every key."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_key_that_is_missing_malformed_or_refused_is_one_line(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", refusing)
    for key, message in (
        (None, "there is no key: run `wandb login`, or set WANDB_API_KEY"),
        ("short", "the key is refused: .*has 5"),
        ("a" * 40, f"the key is refused: Failed to authenticate with {refusing}"),
    ):
        wandb.teardown()
        if key is not None:
            monkeypatch.setenv("WANDB_API_KEY", key)
        with pytest.raises(InputError, match=message):
            connect("wandb", tmp_path).check()


def test_a_server_that_does_not_answer_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()
    with pytest.raises(wandb.errors.AuthenticationError):
        connect("wandb", tmp_path).check()
