import math
from datetime import datetime

import numpy as np
import pytest

from jaxpretrain.display.wording import (
    count_of,
    format_count,
    format_facts,
    format_finish,
    format_known,
    format_number,
    format_seconds,
    format_signed,
    wrap,
)

NOON = datetime(2024, 3, 5, 12, 0).timestamp()


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


def test_the_finish_has_its_date_only_when_that_is_not_today():
    assert format_finish(NOON + 3600, NOON) == "13:00"
    assert format_finish(NOON + 86_400, NOON) == "2024-03-06 12:00"
    assert format_finish(math.nan, NOON) == format_finish(NOON + 1e15, NOON) == "?"


def test_a_signed_number_has_its_plus_where_it_is_positive():
    signed = [format_signed(value, 3) for value in (0.5, -0.5, 0.0, None)]
    assert signed == [
        f"+{format_number(0.5, 3)}",
        format_number(-0.5, 3),
        format_number(0.0, 3),
        "?",
    ]


def test_a_count_has_the_singular_for_one_alone():
    counted = [count_of(number, "process") for number in (0, 1, 2_000)]
    assert counted == ["0 processes", "1 process", "2,000 processes"]
    assert count_of(2, "microbatch") == "2 microbatches" and count_of(1, "device") == "1 device"


def test_facts_stand_behind_their_label_which_stands_once():
    text = format_facts({"model": ["one", "two"], "much longer label": ["three"]}, "  ")
    assert text.splitlines() == [
        "  model             one",
        "                    two",
        "  much longer label three",
    ]


def test_wrapped_lines_hang_below_the_text_and_long_words_stay_whole():
    path = "/a/path/that/is/longer/than/the/line"
    text = wrap(f"model       a b c d e f g h i j k l m n o p\nno label {path}\n\nend", 25)
    assert text.splitlines() == [
        "model       a b c d e f g",
        "            h i j k l m n",
        "            o p",
        "no label",
        path,
        "",
        "end",
    ]


def test_what_is_not_known_is_a_word():
    assert [format_known(value, "+.2f") for value in (0.125, None)] == ["+0.12", "unknown"]
    assert format_known(None, "+.2f", "-") == "-"
