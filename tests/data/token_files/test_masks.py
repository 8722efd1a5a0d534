import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import validate
from jaxpretrain.data.token_files.masks import InstanceFilter, open_label_masks
from jaxpretrain.data.token_files.tokens import TokenFiles, open_raw

GOLDEN = Path(__file__).parents[2] / "golden" / "olmo_order.json"
ROW_LENGTH, NUM_ROWS = 96, 150


def _rows(max_period: int, max_count: int) -> np.ndarray:
    """As scripts/make_golden_order.py makes them."""
    generator = np.random.Generator(np.random.PCG64(max_count))
    length = max(ROW_LENGTH, 2 * max_period * max_count)
    tokens = generator.integers(100, 1000, (NUM_ROWS, length))
    for row in tokens:
        period = generator.integers(1, max_period + 2)
        repeated = period * max_count + generator.integers(-2, 3)
        start = generator.integers(0, length - repeated + 1)
        row[start : start + repeated] = np.resize(row[:period], repeated)
    return tokens.astype(np.int32)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["filters"], ids=str)
def test_the_filter_judges_as_olmos_does(case: dict[str, Any]):
    instance_filter = InstanceFilter(**case["filter"])
    kept = instance_filter.keeps(_rows(instance_filter.max_period, instance_filter.max_count))
    assert "".join("10"[keep] for keep in kept.astype(int)) == case["masked"]


def _keeps(row: list[int], instance_filter: InstanceFilter) -> bool:
    """By the definition: no pattern stands max_count times in a row."""
    count = instance_filter.max_count
    for period in range(instance_filter.min_period, instance_filter.max_period + 1):
        for start in range(len(row) - period * count + 1):
            pattern = row[start : start + period]
            if row[start : start + period * count] == pattern * count:
                return False
    return True


@pytest.mark.parametrize("num_ids", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "instance_filter",
    [InstanceFilter(3, 1, 3), InstanceFilter(6, 2, 4), InstanceFilter(5, 5, 3), InstanceFilter()],
    ids=str,
)
def test_the_filter_is_its_definition(instance_filter: InstanceFilter, num_ids: int):
    generator = np.random.default_rng(num_ids)
    for length in (2, 7, 31, 33, 64):
        rows = generator.integers(0, num_ids, (60, length), dtype=np.int32)
        expected = [_keeps(row, instance_filter) for row in rows.tolist()]
        assert instance_filter.keeps(rows).tolist() == expected


@pytest.mark.parametrize("period", [1, 2, 7, 13])
def test_a_pattern_is_found_wherever_it_stands(period: int):
    """At the beginning, at the end, and one repetition short of too many."""
    length, count = 900, 32
    for start in [0, 1, 5, 100, length - period * count]:
        row = np.arange(length, dtype=np.int32) + 1000
        row[start : start + period * count] = np.resize(np.arange(period), period * count)
        broken = row.copy()
        broken[start + period * count // 2] = -7
        short = row.copy()
        short[start + period * count - 1] = -7
        kept = InstanceFilter().keeps(np.stack([row, broken, short]))
        assert kept.tolist() == [False, True, True]


@pytest.mark.parametrize(
    "impossible",
    [InstanceFilter(3, 4), InstanceFilter(3, 0), InstanceFilter(max_count=2)],
    ids=str,
)
def test_impossible_filters_are_errors(impossible: InstanceFilter):
    with pytest.raises(InputError, match="data.instance_filter"):
        validate(impossible, "data.instance_filter")
        impossible.check()


@pytest.fixture
def files(tmp_path: Path) -> TokenFiles:
    paths = [tmp_path / "tokens" / name for name in ("a.npy", "b/c.npy")]
    for path, length in zip(paths, (19, 8), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.arange(length).astype("<u2").tofile(path)
    root = tmp_path / "tokens"
    return open_raw(root, paths, dtype="uint16", seq_len=4, vocab_size=100, flag=None, chunk=2)


def _write_masks(folder: Path, *lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 2, length, np.uint8) for length in lengths]
    for name, mask in zip(("a.npy", "b/c.npy"), masks, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        mask.tofile(folder / name)
    return masks


def test_label_masks_lie_beside_their_tokens(files: TokenFiles, tmp_path: Path):
    """By name, window by window: 19 tokens are two chunks of two windows."""
    first, second = _write_masks(tmp_path / "masks", 19, 8)
    masks = open_label_masks(tmp_path / "masks", tmp_path / "tokens", files)
    assert len(masks) == len(files) == 6
    expected = [second[4:8], first[:4], first[12:16]]
    np.testing.assert_array_equal(masks.read(np.array([5, 0, 3])), expected)


def test_label_masks_must_fit(files: TokenFiles, tmp_path: Path):
    folder, root = tmp_path / "masks", tmp_path / "tokens"
    with pytest.raises(InputError, match=r"masks/a\.npy: cannot be read"):
        open_label_masks(folder, root, files)
    _write_masks(folder, 19, 9)
    with pytest.raises(InputError, match=r"masks/b/c\.npy: has 9 bytes, .* has 8 tokens"):
        open_label_masks(folder, root, files)
    with pytest.raises(InputError, match=r"a\.npy: lies outside"):
        open_label_masks(folder, tmp_path / "elsewhere", files)
