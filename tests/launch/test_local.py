"""A training of the supervisor is a small Python program that ends in the way that is said."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch import local
from jaxpretrain.launch.local import run_local
from jaxpretrain.launch.training import Training

# Each start takes the next code of a list, and saves a step where that is a pair code:step.
PROGRAM = """
import os, pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
number = int(next((a for a in sys.argv if a.startswith("--process_id=")), "=0").split("=")[1])
log = folder / f"starts-{{number}}"
count = len(log.read_text().splitlines()) if log.exists() else 0
log.write_text((log.read_text() if count else "") + " ".join(sys.argv[1:]) + "\\n")
word = {ends!r}[count]
code, _, step = word.partition(":")
if step:
    (folder / "checkpoints" / step).mkdir(parents=True, exist_ok=True)
if code == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / f"ready-{{number}}").touch()
    time.sleep(60)
if code == "hang":
    time.sleep(60)
if code == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if number == 0 or code != "1":
    sys.exit(int(code))
time.sleep(60)  # the other process of a failure
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs with starts that end as said; returns the exit code, and the starts of process 0."""

    def run(*ends: str, processes: int = 1, **options: object) -> tuple[int, list[str]]:
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.format(folder=str(tmp_path), ends=list(ends)))
        starts = local._starts

        def played(training: Training, num_processes: int):
            found = starts(training, num_processes)
            return [([sys.executable, str(program), *c[3:]], e) for c, e in found]

        monkeypatch.setattr(local, "_starts", played)
        training = Training(("--config=a", f"--workdir={tmp_path}"), tmp_path)
        given = {"max_restarts": 2} | options
        code = run_local(training, num_processes=processes, **given)  # pyright: ignore
        return code, (tmp_path / "starts-0").read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("ends", "code", "starts"),
    [
        (["0"], 0, 1),
        (["2"], 2, 1),
        (["75", "75", "75", "75", "0"], 0, 5),
        (["kill", "0"], 0, 2),
        (["1", "1", "1"], 1, 3),  # given up
        (["1:10", "1", "1", "1:20", "0"], 0, 5),
    ],
)
def test_exit_codes_and_progress_decide(play, ends, code, starts):
    assert (found := play(*ends))[0] == code
    assert len(found[1]) == starts


@pytest.mark.parametrize(
    ("end", "code"), [("0", 0), ("2", 2), ("75", 75), ("1", 1), ("1:10", 75), ("kill", 137)]
)
def test_once_tells_an_engine_whether_there_was_progress(play, end: str, code: int):
    found, starts = play(end, once=True)
    assert (found, len(starts)) == (code, 1)


def test_processes_meet_at_a_port_of_their_own_start(play):
    code, starts = play("75", "0", processes=2)
    assert code == 0
    places = [line.split()[2:] for line in starts]
    assert [place[1:] for place in places] == [["--num_processes=2", "--process_id=0"]] * 2
    ports = [place[0].removeprefix("--coordinator=127.0.0.1:") for place in places]
    assert all(port.isdecimal() for port in ports)


def test_when_one_fails_the_others_end_too(play, monkeypatch: pytest.MonkeyPatch):
    """The second process of this program does not notice."""
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 0.5)
    code, starts = play("1", "1", processes=2, max_restarts=0)
    assert (code, len(starts)) == (137, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_request_to_stop_is_passed_on_and_ends_the_launch(play, tmp_path, number):
    def ask() -> None:
        while not (tmp_path / "ready-0").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    code, starts = play("wait", "0")
    assert (code, len(starts)) == (75, 1)


def test_a_request_that_comes_before_the_processes_have_started_reaches_them():
    gang = local._Gang()
    gang.ask(signal.SIGTERM, None)
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gang.run([(waiting, dict(os.environ))]) == 128 + signal.SIGTERM


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    shares = [local._environment(i, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)]
    assert shares == ["4,5", "6,7"]
    with pytest.raises(InputError, match="--processes=3: 4 GPUs do not divide"):
        local._environment(0, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local._environment(0, 3)["CUDA_VISIBLE_DEVICES"] == ""
