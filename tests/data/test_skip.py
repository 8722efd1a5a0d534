"""Samples that are left out, counted by hand and against a plain list."""

import random
from dataclasses import replace

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.contract import TrainingData
from jaxpretrain.data.skip import (
    Skipping,
    before,
    describe,
    open_training,
    parse_ranges,
    positions,
    unreached,
    unskipped,
)
from jaxpretrain.data.text.text import TextData


class Numbers(TrainingData):
    """Rows that hold their own position."""

    def batch(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        return {"tokens": samples}

    def describe(self) -> str:
        return "numbers"


NUMBERS = Numbers(num_examples=100, fingerprint="x", num_workers=3)


def test_samples_after_a_range_move_up():
    data = Skipping.of(NUMBERS, parse_ranges(["10-12", "4"], "--skip"))
    assert data.batch(np.arange(12))["tokens"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 13, 14, 15]
    assert data.describe() == "numbers; samples 4-4,10-12 are left out"
    assert (data.num_workers, data.fingerprint) == (3, "x")
    assert data.epochs(10) == {"epochs": 0.14} and data.epochs(0) == {"epochs": 0.0}
    assert Skipping.of(NUMBERS, ()) is NUMBERS


def test_ranges_that_a_run_does_not_come_to_are_named():
    data = Skipping.of(NUMBERS, parse_ranges(["4-5", "12-14", "15-16", "90"], "--skip"))
    assert unreached(data, 10) == [  # which end with sample 11 of the data
        "data.skip=12-14,15-16,90-90 leaves nothing out: the run ends before that, with sample 11 "
        "of the data"
    ]
    assert unreached(data, 11)[0].startswith("data.skip=90-90 leaves nothing out")
    assert unreached(data, 200) == unreached(NUMBERS, 10) == []


def test_the_last_numbers_do_not_overflow():
    ranges = parse_ranges(["0-9", f"12-{2**55 - 1}"], "--skip")
    assert positions(np.arange(3), ranges).tolist() == [10, 11, 2**55]


@pytest.mark.parametrize("seed", range(20))
def test_any_ranges_leave_out_what_they_name(seed: int):
    draw = random.Random(seed)
    edges = sorted(draw.sample(range(200), 2 * draw.randint(1, 6)))
    ranges = tuple(zip(edges[::2], edges[1::2], strict=True))
    left = [i for i in range(400) if not any(a <= i <= b for a, b in ranges)]
    assert positions(np.arange(len(left)), ranges).tolist() == left
    for num_samples in (0, 1, 17, len(left)):
        end = left[num_samples - 1] if num_samples else -1
        assert before(ranges, num_samples) == tuple(pair for pair in ranges if pair[0] <= end)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["9-4"], "--config.data.skip=9-4: runs backwards; write 4-9"),
        (["1-5", "5-8"], "--config.data.skip: 1-5 and 5-8 overlap"),
        (["all"], "--config.data.skip=all: write START-END, such as 100-199, or one number"),
        (["-4-2"], "--config.data.skip=-4-2: write START-END"),
        (["0-36028797018963968"], "no run comes that far; 36028797018963967 is the last number"),
    ],
)
def test_bad_ranges_are_one_line(texts: list[str], message: str):
    with pytest.raises(InputError, match=message):
        parse_ranges(texts, "--config.data.skip")


def test_ranges_are_written_as_they_are_read():
    ranges = parse_ranges(["1_000-1_999", " 7 "], "--skip")
    assert ranges == ((7, 7), (1000, 1999))
    assert parse_ranges(describe(ranges).split(","), "--skip") == ranges


def test_opened_data_lacks_what_its_config_leaves_out(tmp_path):
    np.arange(24, dtype="<u2").tofile(tmp_path / "a.npy")
    config = TextData(root=str(tmp_path), seq_len=4)
    whole = open_training(config, seed=0, limits={"tokens": 30})
    assert unskipped(whole) == (whole, ())
    skipping = open_training(replace(config, skip=("1-2",)), seed=0, limits={"tokens": 30})
    inner, ranges = unskipped(skipping)
    assert (inner.fingerprint, ranges) == (whole.fingerprint, ((1, 2),))
    expected = whole.batch(np.array([0, 3, 4]))["tokens"]
    np.testing.assert_array_equal(skipping.batch(np.arange(3))["tokens"], expected)
