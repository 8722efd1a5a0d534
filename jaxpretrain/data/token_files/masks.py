"""Which tokens count in the loss: sequences that repeat themselves, and masks of the user's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Positive, at_least
from jaxpretrain.data.token_files.tokens import TokenFiles
from jaxpretrain.data.token_files.windows import Windows
from jaxpretrain.storage.files import size_of


@dataclass(frozen=True)
class InstanceFilter:
    """Leaves sequences that repeat themselves out of the loss, as OLMo 2 does.

    They stay in their batch, so the order does not change. Source: OLMo's `instance_filter`
    (olmo/data/util.py, find_periodic_sequences).
    """

    max_period: Annotated[int, Positive] = 13
    """Longest pattern, in tokens."""
    min_period: Annotated[int, Positive] = 1
    """Shortest pattern, in tokens."""
    max_count: Annotated[int, at_least(3)] = 32
    """A sequence with a pattern that stands this often in a row is left out."""

    def check(self) -> None:
        """Raises InputError for what cannot be; OLMo counts from 3 repetitions on."""
        if not 1 <= self.min_period <= self.max_period:
            raise InputError(
                f"data.instance_filter: periods from {self.min_period} to {self.max_period}"
                " are none; min_period must be at least 1 and at most max_period"
            )
        if self.max_count < 3:
            raise InputError(
                f"data.instance_filter.max_count is {self.max_count}: must be at least 3"
            )

    def keeps(self, tokens: np.ndarray) -> np.ndarray:
        """Which of the sequences, int32 [n, t], stay in the loss: bool [n]."""
        kept = np.ones(len(tokens), bool)
        for period in range(self.min_period, self.max_period + 1):
            # So many tokens in a row equal the one a period before them.
            length = (self.max_count - 1) * period
            if length + period > tokens.shape[1]:
                break
            for row in np.flatnonzero(_may_repeat(tokens, period, length)):
                equal = tokens[row, period:] == tokens[row, :-period]
                kept[row] &= _longest_run(equal) < length
        return kept


def open_label_masks(folder: Path, root: Path, files: TokenFiles) -> Windows:
    """Masks of the examples of `files`, uint8 [seq_len], 0 where a token is not to be learnt.

    For a token file `root/a/b.npy` the mask is `folder/a/b.npy`, one byte a token.
    """
    paths = []
    for file in files.files:
        if not file.path.is_relative_to(root):
            raise InputError(f"{file.path}: lies outside {root}, so it has no mask in {folder}")
        path = folder / file.path.relative_to(root)
        if (size := size_of(path)) != file.num_tokens:
            raise InputError(
                f"{path}: has {size} bytes, and {file.path} has {file.num_tokens} tokens; a label"
                " mask is one byte a token"
            )
        paths.append(path)
    return files.windows.parallel(paths, np.uint8)


def _may_repeat(tokens: np.ndarray, period: int, length: int) -> np.ndarray:
    """Whether a sequence can have `length` such tokens in a row, bool [n]: looks at few of them."""
    stride = max(length // 4, 1)
    last = tokens.shape[1] - period
    probes = tokens[:, period::stride] == tokens[:, :last:stride]
    # Among any `length` positions in a row there are so many probes in a row.
    num_probes = length // stride
    together = probes[:, num_probes - 1 :].copy()
    for shift in range(1, num_probes):
        together &= probes[:, num_probes - 1 - shift : -shift]
    return together.any(axis=1)


def _longest_run(values: np.ndarray) -> int:
    """Length of the longest run of true values."""
    breaks = np.flatnonzero(~values)
    return int(np.diff(breaks, prepend=-1, append=len(values)).max()) - 1
