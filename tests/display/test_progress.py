import io
import math
import re
import time
from datetime import datetime

import pytest

from jaxpretrain.display import progress as progress_module
from jaxpretrain.display.progress import Progress, progress_line

NOON = datetime(2024, 3, 5, 12, 0).timestamp()
METRICS = {
    "train/loss": 3.4119,
    "train/learning_rate": 1.2e-3,
    "perf/tokens_per_second": 12_345.0,
    "perf/mfu": 0.412,
    "perf/eta_seconds": 192.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(text):
    """The lines a terminal shows after `text`: a carriage return starts over the line."""
    return [re.split("\r", line)[-1].replace("\x1b[K", "") for line in text.split("\n")]


def test_a_diverged_loss_keeps_the_line_short():
    line = progress_line(20, 20, METRICS | {"train/loss": 1e300, "perf/mfu": None}, None, NOON)
    assert line == "step 20/20  100.0%  loss 1.000e+300  lr 1.20e-03  12.3k tok/s"


def test_the_line_says_it_all():
    assert progress_line(1200, 2000, METRICS, NOON + 192, NOON) == (
        "step 1,200/2,000  60.0%  loss 3.412  lr 1.20e-03  12.3k tok/s  mfu 41.2%"
        "  eta 3m12s (12:03)"
    )


def test_the_line_leaves_out_what_is_unknown_and_names_the_unit_of_the_metric():
    metrics = {"train/loss": math.nan, "perf/images_per_second": 830.0, "perf/mfu": None}
    assert progress_line(0, 10, metrics, None, NOON) == "step 0/10  0.0%  loss nan  830 img/s"


@pytest.mark.parametrize("width", range(120))
def test_the_line_keeps_to_the_width_and_gives_up_the_time_left_last(width):
    line = progress_line(1200, 2000, METRICS, NOON + 192, NOON, width)
    assert len(line) <= width
    assert ("eta" in line) == (width >= len("step 1,200/2,000  eta 3m12s (12:03)")) or width < 35


def test_plain_output_is_one_line_a_report():
    stream = io.StringIO()
    with Progress(20, stream=stream, now=lambda: NOON) as progress:
        for step in range(1, 21):
            progress.update(step, METRICS if step % 10 == 0 else None)
        progress.message("saved checkpoint 20")
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 10/20",
        "step 20/20",
        "saved checkpoint 20",
    ]
    assert not set("\r\x1b") & set(stream.getvalue())


def test_a_terminal_shows_one_line_redrawn_a_few_times_a_second(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream, time = Terminal(), [NOON]
    with Progress(1000, stream=stream, now=lambda: time[0]) as progress:
        for step in range(1, 1001):
            time[0] += 0.01
            progress.update(step, {"train/loss": 2.0} if step % 10 == 0 else None)
    assert 40 <= stream.getvalue().count("\r") <= 52
    assert shown(stream.getvalue()) == ["step 1,000/1,000  100.0%  loss 2.000", ""]


def test_a_message_stands_above_the_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(10, stream=stream, now=lambda: NOON) as progress:
        progress.message("starting")
        progress.update(5)
        progress.message("eval at step 5: loss 2.1")
    assert shown(stream.getvalue()) == [
        "starting",
        "eval at step 5: loss 2.1",
        "step 5/10  50.0%",
        "",
    ]


def test_the_time_left_runs_down_between_reports(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream, time = Terminal(), [NOON]
    with Progress(1000, stream=stream, now=lambda: time[0]) as progress:
        progress.update(1, METRICS)
        time[0] += 60
        progress.update(2)
    assert "eta 2m12s (12:03)" in shown(stream.getvalue())[0]


def test_values_of_the_live_line_are_revised_without_a_report(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal, plain, time = Terminal(), io.StringIO(), [NOON]
    for stream in (terminal, plain):
        with Progress(1000, stream=stream, now=lambda: time[0]) as progress:
            progress.update(1, {"train/loss": 2.0, "perf/tokens_per_second": 10.0})
            time[0] += 1
            progress.revise({"perf/tokens_per_second": 500.0, "perf/eta_seconds": 60.0})
            progress.update(2)
    assert "loss 2.000  500 tok/s  eta 1m00s" in shown(terminal.getvalue())[0]
    assert plain.getvalue().count("\n") == 1


def test_other_processes_show_nothing():
    stream = Terminal()
    with Progress(10, stream=stream, is_shown=False) as progress:
        progress.update(5, METRICS)
        progress.message("hello")
    assert stream.getvalue() == ""


def test_a_terminal_that_went_away_does_not_end_the_run():
    class Gone(Terminal):
        def write(self, text):
            raise OSError("Input/output error")

    with Progress(10, stream=Gone()) as progress:
        progress.update(5, METRICS)
        progress.message("hello")


def test_work_of_unknown_length_has_no_percentage():
    metrics = {"perf/megabytes_per_second": 12.34}
    line = progress_line(1200, None, metrics, None, NOON, unit="documents")
    assert line == "documents 1,200  12.3 MB/s"


def test_a_line_that_does_not_stay_is_erased_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(9, "compiled", stream=stream, stays=False, now=lambda: NOON) as progress:
        progress.message("4.00 GiB per device")
        progress.update(1)
    assert "compiled 1/9  11.1%" in stream.getvalue()
    assert shown(stream.getvalue()) == ["4.00 GiB per device", ""]


def test_long_work_is_shown_again_and_again(monkeypatch):
    monkeypatch.setattr(progress_module, "MAX_SILENCE", 0.05)
    stream = io.StringIO()
    with Progress(10, stream=stream) as progress:
        with progress.activity("compiling"):
            while stream.getvalue().count("\n") < 3:
                time.sleep(0.01)
        lines = stream.getvalue().splitlines()
        time.sleep(0.2)
    assert stream.getvalue().splitlines() == lines == ["compiling: 0s so far"] * len(lines)


def test_a_terminal_shows_long_work_in_place_and_then_the_step_again(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(10, stream=stream, now=lambda: NOON) as progress:
        progress.update(5)
        with progress.activity("evaluating"):
            while "evaluating: 1s so far" not in stream.getvalue():
                time.sleep(0.01)
    assert shown(stream.getvalue()) == ["step 5/10  50.0%", ""]


@pytest.mark.parametrize("inner", ["activity", "bar"])
def test_of_works_inside_one_another_the_innermost_is_shown(monkeypatch, inner):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(None, stream=stream) as outer, outer.activity("opening"):
        with Progress(10, "document", stream=stream, stays=False) as within:
            if inner == "bar":
                within.update(5)
                time.sleep(1.2)
            else:
                with within.activity("training the tokenizer"):
                    while "tokenizer: 1s so far" not in stream.getvalue():
                        time.sleep(0.01)
        assert "opening" not in stream.getvalue()
        while "opening: " not in stream.getvalue():
            time.sleep(0.01)


def test_short_work_and_hidden_work_are_not_shown():
    stream = io.StringIO()
    with Progress(10, stream=stream) as progress, progress.activity("short"):
        pass
    with Progress(10, stream=stream, is_shown=False) as progress, progress.activity("hidden"):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("columns", "lines"), [("40", 4), ("200", 1)])
def test_messages_are_wrapped_at_the_width_of_the_environment(monkeypatch, columns, lines):
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    Progress(None, stream=stream).message("data        " + "word " * 16)
    shown_lines = stream.getvalue().splitlines()
    assert len(shown_lines) == lines
    assert all(line.startswith(" " * 12 + "word") for line in shown_lines[1:])
