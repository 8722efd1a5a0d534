import io
import json
import os

from jaxpretrain.sweeps.board import MAX_SILENCE, Board, Tail

RUNS = {"a/seed1": 100, "b/seed1": 100}


def write(path, *records, mode="a"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_metrics_are_read_piece_by_piece(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    tail.read()
    assert (tail.step, tail.loss) == (0, None)
    write(path, {"step": 5, "train/loss": 4.0, "perf/eta_seconds": 60.0}, {"step": 5, "x": 1})
    with path.open("a") as file:
        file.write('{"step": 9, "train/lo')
    tail.read()
    assert (tail.step, tail.loss, tail.eta) == (5, 4.0, 60.0)
    with path.open("a") as file:
        file.write('ss": 3.5}\n')
    tail.read()
    assert (tail.step, tail.loss) == (9, 3.5)
    new = tmp_path / "new"  # a run that goes on from step 7 replaces the file
    write(new, {"step": 7, "train/loss": 3.75})
    os.replace(new, path)
    tail.read()
    assert (tail.step, tail.loss) == (7, 3.75)


def test_plain_output_has_a_line_a_change_and_one_every_half_minute(tmp_path):
    out, clock = io.StringIO(), [0.0]
    board = Board(tmp_path, RUNS, out, lambda: clock[0])
    board.update({"a/seed1": "running", "b/seed1": "waiting"})
    assert out.getvalue().splitlines() == [
        "a/seed1  running  step 0/100",
        "0 of 2 runs done, 1 running",
    ]
    record = {"step": 50, "train/loss": 3.25, "perf/eta_seconds": 50.0}
    write(tmp_path / "a/seed1/metrics.jsonl", record)
    clock[0] += MAX_SILENCE - 1
    board.update({"a/seed1": "running", "b/seed1": "waiting"})
    assert len(out.getvalue().splitlines()) == 2
    clock[0] = 50.0
    board.update({"a/seed1": "running", "b/seed1": "waiting"})
    assert out.getvalue().splitlines()[2:] == [
        "a/seed1  running  step 50/100  loss 3.250  eta 50s",
        "0 of 2 runs done, 1 running  eta 2m30s",
    ]
    board.update({"a/seed1": "done", "b/seed1": "failed"})
    assert out.getvalue().splitlines()[4:] == [
        "a/seed1  done     step 50/100  loss 3.250",
        "b/seed1  failed   step 0/100",
        "1 of 2 runs done, 1 failed",
    ]


def test_the_time_left_follows_the_pace_of_the_runs_that_train(tmp_path):
    """Two at a time, a second a step; compilation and the runs that are done do not count."""
    runs = dict.fromkeys(("a", "b", "c", "d"), 100)
    out = io.StringIO()
    board = Board(tmp_path, runs, out, lambda: 0.0)
    states = {"a": "done", "b": "running", "c": "running", "d": "waiting"}
    for run, step in {"a": 100, "b": 90, "c": 40}.items():
        write(tmp_path / run / "metrics.jsonl", {"step": step, "perf/eta_seconds": 100.0 - step})
    board.update(states)
    assert out.getvalue().endswith("1 of 4 runs done, 2 running  eta 1m25s\n")
    board.update(states | {"b": "done", "c": "done", "d": "running"})  # it has no pace yet
    assert out.getvalue().endswith("3 of 4 runs done, 1 running  eta 1m40s\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_redrawn_and_long_tables_are_cut(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    runs = {f"arm/seed{number}": 10 for number in range(40)}
    board = Board(tmp_path, runs, out, lambda: 0.0)
    board.update(dict.fromkeys(runs, "waiting") | {"arm/seed39": "running"})
    lines = out.getvalue().split("\n")
    assert len(lines) == 22 + 1
    assert lines[0].startswith("\rarm/seed39  running")  # what runs comes first
    assert "... 20 more" in lines[20]
    assert "0 of 40 runs done, 1 running" in lines[21]
    board.message("asked to stop")
    assert out.getvalue().endswith("\x1b[22A\r\x1b[Jasked to stop\n")


def test_a_terminal_that_is_gone_stops_nothing(tmp_path):
    out = io.StringIO()
    board = Board(tmp_path, RUNS, out, lambda: 0.0)
    out.close()
    board.update({"a/seed1": "done", "b/seed1": "waiting"})
