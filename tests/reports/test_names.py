import pytest

from jaxpretrain.reports.names import tick_format, title, words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("perf/host_memory_gib", "Host memory, GiB"),
        ("train/z", "Squared log-partition function (z)"),
        ("train/wiki/loss", "Loss of wiki"),
        ("eval/digits/probe_10shot", "Accuracy of a linear probe, images per class: 10 of digits"),
        ("perf/mfu", "Model FLOPs utilisation"),
    ],
)
def test_titles_are_words(name, expected):
    assert title(name) == expected


def test_unknown_names_lose_their_underscores():
    assert words("train/my_new_metric") == "my new metric"


def test_shares_are_percent_with_digits():
    assert tick_format("perf/data_wait_fraction") == ".3~%"
    assert tick_format("train/loss") == ""
