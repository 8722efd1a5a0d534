from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.data.token_files.windows import Windows

LENGTH, SIZES = 4, [19, 3, 8, 25]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Items that say where they are: 100 * file + position."""
    paths = [tmp_path / str(number) for number in range(len(SIZES))]
    for number, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        (100 * number + np.arange(size)).astype("<u2").tofile(path)
    return paths


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_each_file_is_cut_to_whole_chunks(paths: list[Path], chunk: int):
    windows = Windows(paths, SIZES, np.uint16, LENGTH, chunk)
    expected = [
        100 * number + LENGTH * window
        for number, size in enumerate(SIZES)
        for window in range(size // (LENGTH * chunk) * chunk)
    ]
    assert len(windows) == len(expected)
    items = {position: items for position, *_, items in windows.read(np.arange(len(windows)))}
    for position, first in enumerate(expected):
        np.testing.assert_array_equal(items[position], first + np.arange(LENGTH))


def test_reading_says_where_it_reads(paths: list[Path]):
    windows = Windows(paths, SIZES, np.uint16, LENGTH)
    indices = np.array([11, 0, 5, 0])
    files, numbers = windows.locate(indices)
    for position, file, window, items in windows.read(indices):
        assert (files[position], numbers[position]) == (file, window)
        assert items[0] == 100 * file + LENGTH * window


def test_parallel_windows_are_cut_the_same(paths: list[Path]):
    windows = Windows(paths, SIZES, np.uint16, LENGTH, chunk=2)
    other = windows.parallel(paths, np.uint16)
    assert len(other) == len(windows)
    for ours, theirs in zip(windows.read(np.arange(4)), other.read(np.arange(4)), strict=True):
        np.testing.assert_array_equal(ours[3], theirs[3])
