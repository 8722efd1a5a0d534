import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.sweeps.values import Range, fill, parse_range, split_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3e-3,6e-3", ("3e-3", "6e-3")),
        ("true", ("true",)),
        (" a , b ", ("a", "b")),
        ("[0.9,0.95],(0.9,0.99)", ("0.9,0.95", "0.9,0.99")),
        ("'a,b',\"c]\",d", ("a,b", "c]", "d")),
        ("100 steps,[]", ("100 steps", "")),
        ("f(a,b),c", ("f(a,b)", "c")),
    ],
)
def test_lists_split_at_commas_outside_brackets_and_quotes(text, expected):
    assert split_values(text) == expected


@pytest.mark.parametrize("text", ["", "a,,b", "a,", "[a,b", "'a,b"])
def test_a_list_with_a_gap_is_refused(text):
    with pytest.raises(ValueError, match=r"no value|expected values|is missing"):
        split_values(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4..1e-2", Range(1e-4, 1e-2, "log")),
        ("1e-4..1e-2:linear", Range(1e-4, 1e-2, "linear")),
        ("1..10", Range(1, 10, "linear")),
        ("1..10:log", Range(1, 10, "log")),
        ("-1..100", Range(-1, 100, "linear")),
    ],
)
def test_ranges_are_on_a_log_scale_where_the_ends_are_far_apart(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1", "expected LOW..HIGH"),
        ("1..2..3", "expected LOW..HIGH"),
        ("a..2", "expected LOW..HIGH"),
        ("1..2:cubic", "expected LOW..HIGH"),
        ("1..inf", "expected LOW..HIGH"),
        ("2..2", "is empty"),
        ("0..2:log", "positive ends"),
    ],
)
def test_a_range_without_numbers_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_range(text)


def test_points_fill_a_log_scale_evenly_and_more_of_them_keep_the_first():
    ranges = {"rate": Range(1e-4, 1e-2, "log"), "width": Range(100, 400, "linear")}
    points = fill(ranges, 16, seed=3, whole=frozenset({"width"}))
    rates = [float(dict(point)["rate"]) for point in points]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) == 8
    assert all(dict(point)["width"].isdecimal() for point in points)
    assert all(len(dict(point)["rate"].replace(".", "").strip("0")) <= 3 for point in points)
    assert fill(ranges, 5, seed=3, whole=frozenset({"width"})) == points[:5]
    assert fill(ranges, 5, seed=4, whole=frozenset({"width"})) != points[:5]


def test_a_range_of_few_whole_numbers_gives_each_once():
    points = fill({"n": Range(1, 3, "linear")}, 3, seed=0, whole=frozenset({"n"}))
    assert sorted(points) == [(("n", "1"),), (("n", "2"),), (("n", "3"),)]
    with pytest.raises(InputError, match=r"--random=4: the ranges hold 3 different points"):
        fill({"n": Range(1, 3, "linear")}, 4, seed=0, whole=frozenset({"n"}))
