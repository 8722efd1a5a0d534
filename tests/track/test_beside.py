import os
import stat
import sys
import time
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.track import beside
from jaxpretrain.track.beside import trackers_beside


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lets a script of Python take the place of the process; `words` are its lines of input."""

    def play(script: str) -> None:
        program = tmp_path / "program"
        head = f"#!{sys.executable}\nimport os, sys, time\nsay = lambda x: print(x, flush=True)\n"
        program.write_text(head + script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(beside.sys, "executable", str(program))

    return play


def test_a_run_says_when_it_begins_and_ends(tmp_path: Path, played) -> None:
    out = tmp_path / "words"
    played(f"say('ready')\nsay('note: hello')\nopen({str(out)!r}, 'w').write(sys.stdin.read())")
    said: list[str] = []
    for is_complete, words in ((True, "begin\nreport\n"), (False, "begin\n")):
        with trackers_beside(tmp_path, ["wandb"], said.append, lambda x=is_complete: x) as begin:
            begin()
        assert out.read_text() == words
    assert [line for line in said if "waiting" not in line] == ["note: hello"] * 2
    assert (tmp_path / "trackers" / "wandb.log").read_text() == ""


def test_a_run_that_fails_has_a_report_and_one_that_is_interrupted_none(
    tmp_path: Path, played
) -> None:
    out = tmp_path / "words"
    played(f"say('ready')\nopen({str(out)!r}, 'w').write(sys.stdin.read())")
    for error, words in ((ValueError, "begin\nreport\n"), (KeyboardInterrupt, "begin\n")):
        tracked = trackers_beside(tmp_path, ["wandb"], print, lambda: False)
        with pytest.raises(error), tracked as begin:
            begin()
            raise error
        assert out.read_text() == words


def test_a_refusal_ends_the_run_before_it_begins(tmp_path: Path, played) -> None:
    played("say('error: wandb: the key is refused')\nsys.exit(2)")
    said: list[str] = []
    tracked = trackers_beside(tmp_path, ["wandb"], said.append, lambda: True)
    with pytest.raises(InputError) as error, tracked:
        pytest.fail("the run has begun")
    assert str(error.value) == "--config.monitor.trackers=wandb: the key is refused"
    assert said == []


def test_without_trackers_nothing_is_started(tmp_path: Path, played) -> None:
    played("raise SystemExit(1)")
    with trackers_beside(tmp_path, [], print, lambda: True) as begin:
        begin()
    assert not (tmp_path / "trackers").exists()


def test_a_process_that_dies_is_told_and_ends_nothing(tmp_path: Path, played) -> None:
    played("print('the reason', file=sys.stderr)\nsys.exit(1)")
    said: list[str] = []
    with trackers_beside(tmp_path, ["mlflow"], said.append, lambda: False) as begin:
        begin()
    assert "warning: mlflow does not start; " in said[0] and "mlflow.log says why" in said[0]
    assert "mlflow has not all of the run; `" in said[-1]
    assert f"track {tmp_path} --to=mlflow` sends the rest" in said[-1]
    assert "the reason" in (tmp_path / "trackers" / "mlflow.log").read_text()


def test_no_process_is_waited_for_for_long_or_left_behind(
    tmp_path: Path, played, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    played(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    monkeypatch.setattr(beside, "START_SECONDS", 10.0)
    monkeypatch.setattr(beside, "_SILENT_SECONDS", 0.2)
    monkeypatch.setattr(beside, "STOP_SECONDS", 0.5)
    said: list[str] = []
    tracked = trackers_beside(tmp_path, ["wandb"], said.append, lambda: False)
    with tracked as begin:  # it has not answered
        while not pid.exists() or not pid.read_text():
            time.sleep(0.05)
        begin()
        began = time.monotonic()
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert said[0] == "waiting for wandb to take the rest of the run ..."
    assert "wandb has not all of the run" in said[1]
