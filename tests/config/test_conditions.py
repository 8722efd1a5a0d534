import math

import pytest

from jaxpretrain.config.conditions import number_of, parse_condition
from jaxpretrain.config.errors import InputError


@pytest.mark.parametrize(
    ("text", "passing", "failing"),
    [
        ("score>=3", [3, 3.5, "4"], [2.9, "2", None, "high"]),
        ("score<1e3", [0, "-5"], [1000, None]),
        ("lang=en,de", ["en", " de "], ["fr", None, 3]),
        ("lang!=en", ["fr", None], ["en"]),
        ("year=1e3", [1000, "1000.0"], [1001, "1e4"]),
        ("text!=", ["a", 0], [None, ""]),
        ("is_good=true", [True, "true"], [False, 1]),
    ],
)
def test_values_that_pass_and_fail(text: str, passing: list[object], failing: list[object]):
    condition = parse_condition(text)
    assert [condition.holds(value) for value in passing] == [True] * len(passing)
    assert [condition.holds(value) for value in failing] == [False] * len(failing)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("score", "write COLUMN>=NUMBER"),
        ("score>=high", "'high' is no number"),
        ("=3", "write"),
        ("a==3", "== is no sign"),
    ],
)
def test_another_form_is_refused(text: str, complaint: str):
    with pytest.raises(InputError, match=f"--where={text}: .*{complaint}"):
        parse_condition(text)


def test_numbers_are_found_in_texts():
    assert number_of("1e3") == 1000
    assert math.isnan(number_of("many")) and math.isnan(number_of(None))
