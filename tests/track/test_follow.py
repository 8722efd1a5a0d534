import queue
import threading
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.track import follow
from jaxpretrain.track.follow import BEGIN, READY, REPORT, Follower, in_a_line, send
from tests.track.conftest import Recorder, write_steps


def words(*said: str) -> "queue.SimpleQueue[str]":
    """Words that have been said already."""
    found: queue.SimpleQueue[str] = queue.SimpleQueue()
    for word in said:
        found.put(word)
    return found


def test_a_folder_is_sent_once_with_its_report(workdir: Path, recorder: Recorder) -> None:
    send(workdir, "wandb")
    send(workdir, "wandb")
    assert len(recorder.lines()) == 13
    assert [name for name, _ in recorder.kinds("artifact")] == ["report.html"] * 2
    assert len(recorder.kinds("close")) == 2


def test_a_refused_run_is_an_error_that_comes_first(workdir: Path, recorder: Recorder) -> None:
    recorder.refusal = InputError("wandb: the key is refused")
    said: list[str] = []
    assert Follower(workdir, "wandb", said.append).check() == 2
    assert said == ["error: wandb: the key is refused"]
    with pytest.raises(InputError, match="the key is refused"):
        send(workdir, "wandb")
    assert recorder.runs == {}


def test_a_tracker_that_does_not_answer_is_a_warning(workdir: Path, recorder: Recorder) -> None:
    recorder.refusal = TimeoutError("nobody\nanswers")
    said: list[str] = []
    follower = Follower(workdir, "wandb", said.append)
    assert follower.check() == 0
    assert len(said) == 1 and said[0].startswith("warning: wandb: TimeoutError: nobody answers; ")
    assert follower.follow(words(BEGIN, "")) == 0
    assert len(recorder.lines()) == 13 and recorder.kinds("artifact") == []


def test_a_run_that_is_over_has_a_report(workdir: Path, recorder: Recorder) -> None:
    said: list[str] = []
    follower = Follower(workdir, "wandb", said.append)
    assert follower.check() == 0 and follower.follow(words(BEGIN, REPORT, "")) == 0
    assert said == [READY]
    assert len(recorder.kinds("artifact")) == 1


def test_nothing_is_read_of_a_run_that_does_not_begin(workdir: Path, recorder: Recorder) -> None:
    follower = Follower(workdir, "wandb", lambda line: None)
    assert follower.check() == 0 and follower.follow(words("")) == 0
    assert recorder.opened == []


def test_after_failures_the_same_process_sends_the_rest(
    workdir: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.01)
    said: list[str] = []
    follower = Follower(workdir, "wandb", said.append)
    follower._every = 0.01
    follower.check()
    recorder.num_lines_left = 0
    talk = words(BEGIN)
    thread = threading.Thread(target=follower.follow, args=(talk,))
    thread.start()
    try:
        while len(said) < 2:  # ready, and the warning
            pass
        write_steps(workdir, range(11, 16))
        recorder.num_lines_left = 100
        talk.put(REPORT)
    finally:
        talk.put("")
        thread.join(120)
    assert not thread.is_alive()
    steps = [line.step for line in recorder.lines() if "train/loss" in line.values]
    assert steps == list(range(1, 16))
    assert len(said) == 2 and "ConnectionError: the line is cut; the run goes on" in said[1]


def test_what_is_left_at_the_end_is_told(workdir: Path, recorder: Recorder) -> None:
    follower = Follower(workdir, "wandb", lambda line: None)
    follower.check()
    recorder.num_lines_left = 0
    assert follower.follow(words(BEGIN, "")) == 1


def test_two_processes_do_not_send_the_same(
    workdir: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_COMMAND_PATIENCE", 0.01)
    with follow._alone(workdir, "wandb", 0), pytest.raises(InputError, match="another process"):
        send(workdir, "wandb")
    assert recorder.opened == []


def test_an_error_is_one_short_line() -> None:
    assert in_a_line(ValueError("a\n b")) == "ValueError: a b"
    assert len(in_a_line(ValueError("a" * 999))) == 300
