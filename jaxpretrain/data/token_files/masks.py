"""Tokens that do not count in the loss: sequences that repeat themselves, and the user's masks."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Positive, at_least
from jaxpretrain.data.token_files.tokens import TokenFiles
from jaxpretrain.storage.copies import local_copy
from jaxpretrain.storage.files import relative, stat_of


@dataclass(frozen=True)
class InstanceFilter:
    """A filter that leaves sequences that repeat themselves out of the loss, as OLMo 2 does.

    They stay in their batch, so the order does not change. Source: OLMo's `instance_filter`
    (olmo/data/util.py, find_periodic_sequences).
    """

    max_period: Annotated[int, Positive] = 13
    """Longest pattern, in tokens."""
    min_period: Annotated[int, Positive] = 1
    """Shortest pattern, in tokens."""
    max_count: Annotated[int, at_least(3)] = 32
    """Number of repetitions in a row with which a sequence is left out."""

    def check(self) -> None:
        """Raises InputError for a least period above the longest."""
        if self.min_period > self.max_period:
            raise InputError(
                f"data.instance_filter: there are no periods from {self.min_period} to"
                f" {self.max_period}; min_period must be at most max_period"
            )

    def keeps(self, tokens: np.ndarray) -> np.ndarray:
        """Returns true for the sequences, int32 [n, t], that stay in the loss: bool [n]."""
        kept = np.ones(len(tokens), bool)
        for period in range(self.min_period, self.max_period + 1):
            # The number of tokens in a row that equal the one a period before them.
            length = (self.max_count - 1) * period
            if length + period > tokens.shape[1]:
                break
            for row in np.flatnonzero(_may_repeat(tokens, period, length)):
                equal = tokens[row, period:] == tokens[row, :-period]
                kept[row] &= _longest_run(equal) < length
        return kept


def open_label_masks(folder: Path, root: Path, files: TokenFiles) -> TokenFiles:
    """Opens the masks of the same windows: bytes, 0 where a token is not to be learnt.

    For a token file `root/a/b.npy` the mask is `folder/a/b.npy`, one byte a token.
    """
    masks = []
    names = {str(relative(file.path, root)) for file in files.files}
    folder = local_copy(folder, names.__contains__)
    for file in files.files:
        if not file.path.is_relative_to(root):
            raise InputError(f"{file.path}: lies outside {root}, so it has no mask in {folder}")
        path = folder / file.path.relative_to(root)
        if (size := stat_of(path).st_size) != file.num_tokens:
            raise InputError(
                f"{path}: has {size} bytes, and {file.path} has {file.num_tokens} tokens; a label"
                " mask is one byte a token"
            )
        masks.append(replace(file, path=path))
    return replace(files, files=masks, dtype="uint8", vocab_size=256)


def _may_repeat(tokens: np.ndarray, period: int, length: int) -> np.ndarray:
    """Returns true where a sequence may have such a run, bool [n], by a few of its tokens."""
    stride = max(length // 4, 1)
    last = tokens.shape[1] - period
    probes = tokens[:, period::stride] == tokens[:, :last:stride]
    # The number of probes among any `length` positions in a row.
    num_probes = length // stride
    together = probes[:, num_probes - 1 :].copy()
    for shift in range(1, num_probes):
        together &= probes[:, num_probes - 1 - shift : -shift]
    return together.any(axis=1)


def _longest_run(values: np.ndarray) -> int:
    """Returns the length of the longest run of true values."""
    breaks = np.flatnonzero(~values)
    return int(np.diff(breaks, prepend=-1, append=len(values)).max()) - 1
