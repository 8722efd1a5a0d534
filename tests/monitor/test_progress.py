import io
import math
import re
from datetime import datetime

import numpy as np
import pytest

from jaxpretrain.monitor.progress import (
    Progress,
    format_count,
    format_finish,
    format_number,
    format_seconds,
    progress_line,
)

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


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (0.0312, "0.0312"),
        (950.4, "950"),
        (999.4, "999"),
        (999.6, "1k"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (1_200_000, "1.2M"),
        (6.9e9, "6.9B"),
        (2e12, "2T"),
        (-12_345, "-12.3k"),
        (math.nan, "nan"),
        (math.inf, "infT"),
    ],
)
def test_format_count(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (3599.7, "1h00m"),
        (3900, "1h05m"),
        (86_399, "23h59m"),
        (187_200, "2d04h"),
        (250 * 365 * 86_400, "250 years"),
        (1e300, "3.17e+280T years"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0.00"),
        (0.25, "0.250"),
        (3.4119, "3.412"),
        (-10.8271, "-10.83"),
        (99.999, "100.0"),
        (0.04627, "0.0463"),
        (8480.4803, "8480"),
        (123_456.7, "123457"),
        (999_999.7, "1.000e+06"),
        (1.0142e304, "1.014e+304"),
        (-1.5e-10, "-1.50e-10"),
        (0.00012, "0.000120"),
        (10**400, "inf"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, "?"),
        (True, "1"),
        (np.float32(2.4), "2.400"),
        (np.float64(1e300), "1.000e+300"),
        (np.int64(2**62), "4.612e+18"),
        (np.array([0.5]), "0.500"),
    ],
)
def test_numbers_have_four_digits_that_count_and_never_fill_a_line(value, text):
    assert format_number(value) == text


def test_a_diverged_loss_keeps_the_line_short():
    line = progress_line(20, 20, METRICS | {"train/loss": 1e300, "perf/mfu": None}, None, NOON)
    assert line == "step 20/20  100.0%  loss 1.000e+300  lr 1.20e-03  12.3k tok/s"


def test_the_finish_has_its_date_only_when_that_is_not_today():
    assert format_finish(NOON + 3600, NOON) == "13:00"
    assert format_finish(NOON + 86_400, NOON) == "2024-03-06 12:00"
    assert format_finish(math.nan, NOON) == format_finish(NOON + 1e15, NOON) == "?"


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


def test_other_processes_show_nothing():
    stream = Terminal()
    with Progress(10, stream=stream, is_primary=False) as progress:
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
