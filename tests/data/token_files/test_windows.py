import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
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


def test_an_index_outside_is_an_error(paths: list[Path]):
    windows = Windows(paths, SIZES, np.uint16, LENGTH)
    last = len(windows) - 1
    assert windows.locate(np.array([last]))[0] == [3]
    for outside in (-1, last + 1):
        with pytest.raises(IndexError, match=f"of {last + 1}"):
            windows.locate(np.array([0, outside]))
    files, _ = windows.locate(np.array([], np.int64))
    assert len(files) == 0


def test_no_files_are_no_windows():
    assert len(Windows([], [], np.uint16, LENGTH)) == 0


def test_as_many_files_stay_open_as_are_allowed(paths: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxpretrain.data.token_files.windows.MAX_OPEN_FILES", 2)
    windows = Windows(paths, SIZES, np.uint16, LENGTH)
    firsts = {0: 0, 2: 4, 3: 6}  # file -> its first window; file 1 has none
    for number, (file, first) in enumerate(firsts.items(), start=1):
        ((_, _, _, items),) = windows.read(np.array([first]))
        assert items[0] == 100 * file
        assert len(windows._opened) == min(number, 2)
    assert list(windows._opened) == [2, 3]  # the oldest was closed
    ((_, _, _, items),) = windows.read(np.array([1]))
    assert items.tolist() == [4, 5, 6, 7]


def test_a_copy_has_no_open_files_and_reads_the_same(paths: list[Path]):
    windows = Windows(paths, SIZES, np.uint16, LENGTH)
    ours = [items.tolist() for *_, items in windows.read(np.array([5, 11]))]
    copy = pickle.loads(pickle.dumps(windows))
    assert windows._opened and not copy._opened
    assert [items.tolist() for *_, items in copy.read(np.array([5, 11]))] == ours


def test_a_file_that_is_gone_is_named(paths: list[Path]):
    windows = Windows(paths, SIZES, np.uint16, LENGTH)
    paths[2].unlink()
    with pytest.raises(InputError, match=r"2: cannot be read"):
        list(windows.read(np.array([4])))
