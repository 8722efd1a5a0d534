"""Windows of fixed length over memory-mapped files of numbers, as OLMo cuts them.

They never cross a file, the remainder of each file is dropped, and indices run over the files in
order.
"""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxpretrain.config.errors import InputError

MAX_OPEN_FILES = 512
"""The number of maps that are open at once. Each holds a file descriptor, of 1024 by default."""


class Windows:
    """Windows of `length` items, by index. Files are opened at first use; picklable.

    Each file is cut to a whole number of runs of `chunk` windows.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Sequence[int],
        dtype: np.typing.DTypeLike,
        length: int,
        chunk: int = 1,
    ):
        self.paths = tuple(paths)
        self.sizes = tuple(sizes)
        """Number of items in each file, with remainders."""
        self.length = length
        self.chunk = chunk
        self._dtype = np.dtype(dtype).newbyteorder("<")
        counts = [size // (length * chunk) * chunk for size in sizes]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._starts = self._ends - counts
        self._opened: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def parallel(self, paths: Sequence[Path], dtype: np.typing.DTypeLike) -> "Windows":
        """Returns the same windows of other files with the same numbers of items."""
        return Windows(paths, self.sizes, dtype, self.length, self.chunk)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (file, window within it) of each index, all int64 [n]."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"window {indices.min()}..{indices.max()} of {len(self)}")
        files = np.searchsorted(self._ends, indices, side="right")
        return files, indices - self._starts[files]

    def read(self, indices: np.ndarray) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """Yields (position in `indices`, file, window within it, its items [length]) by file."""
        files, windows = self.locate(indices)
        for file in np.unique(files).tolist():
            opened = self._open(file)
            for position in np.flatnonzero(files == file).tolist():
                window = int(windows[position])
                yield position, file, window, opened[window]

    def _open(self, number: int) -> np.ndarray:
        """Returns the windows of one file, [num_windows, length], on its memory map."""
        if number not in self._opened:
            path = self.paths[number]
            try:
                with path.open("rb") as file:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: cannot be read ({error})") from None
            if len(self._opened) >= MAX_OPEN_FILES:
                del self._opened[next(iter(self._opened))]
            num_windows = self.sizes[number] // self.length
            items = np.frombuffer(data, self._dtype, num_windows * self.length)
            self._opened[number] = items.reshape(num_windows, self.length)
        return self._opened[number]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": {}}
