"""The epoch around a stretch: where documents of its batches come again, and which ids are rare.

A document counts as the same where a run of tokens from its middle is. Their hashes are compared
with those at every position of the epoch, or of a part of it where it is long. Images are the same
where their files are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxpretrain.data.images.images import TrainingImages
from jaxpretrain.data.skip import Ranges, positions, sample_at, unskipped
from jaxpretrain.data.text.text import TrainingSequences
from jaxpretrain.replay.microscope import Part, View
from jaxpretrain.replay.stretch import Stretch

ANCHOR = 24
"""The number of tokens in a row that make two documents the same."""
MAX_TOKENS = 20_000_000
"""The largest number of tokens of the epoch that are looked at, which takes some seconds."""
MAX_IMAGES = 20_000
"""The largest number of images whose files are compared."""
_ROWS = 256
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Epoch:
    """The counts of ids in an epoch, and its samples that repeat documents of a stretch."""

    share: float
    """The share of the epoch that was looked at."""
    counts: np.ndarray
    """The number of times that each id occurs, int64 [ids]."""
    again: dict[Part, list[int]]
    """Document or image -> the other samples that have it, in order."""


def look_around(
    stretch: Stretch, views: Sequence[View], max_tokens: int = MAX_TOKENS
) -> Epoch | None:
    """Returns what the epoch of the first step has of the stretch; None for data of other kinds."""
    data, ranges = unskipped(stretch.data)
    if isinstance(data, TrainingImages):
        return _equal_images(data, ranges, views)
    if not isinstance(data, TrainingSequences):
        return None
    anchors = dict(_anchors(views))
    known = np.array(sorted(anchors), np.uint64)
    size = data.num_examples
    begin = stretch.stages.samples(stretch.first).start // size * size
    length = stretch.stages.program.experiment.data.units_per_example()[1]
    num_blocks = -(-size // _ROWS)
    shown = min(num_blocks, max(1, max_tokens // (length * _ROWS)))
    blocks = np.unique(np.linspace(0, num_blocks - 1, shown).astype(np.int64))
    counts, seen = np.zeros(0, np.int64), 0
    again: dict[Part, set[int]] = {}
    for block in blocks.tolist():
        samples = np.arange(block * _ROWS, min((block + 1) * _ROWS, size)) + begin
        tokens = stretch.data.batch(samples)["tokens"]
        seen += len(samples)
        found = np.bincount(tokens.ravel(), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
        hashes = hashes_of(tokens)
        for row, column in np.argwhere(np.isin(hashes, known)).tolist():
            for part in anchors[int(hashes[row, column])]:
                if int(samples[row]) != part.place.sample:
                    again.setdefault(part, set()).add(int(samples[row]))
    return Epoch(seen / size, counts, {part: sorted(where) for part, where in again.items()})


def _equal_images(data: TrainingImages, ranges: Ranges, views: Sequence[View]) -> Epoch:
    """Returns the samples of the first epoch whose files have the same bytes as those seen.

    `ranges` of the order are left out of the run.
    """
    parts = [one for view in views for one in view.examples]
    order = positions(np.array([one.place.sample for one in parts]), ranges)

    def digest(place: int) -> bytes:
        return hashlib.sha256(data.images.read(data.indices[place])).digest()

    known: dict[bytes, list[tuple[Part, int]]] = {}
    for one, place in zip(parts, data.order(order).tolist(), strict=True):
        known.setdefault(digest(place), []).append((one, place))
    again: dict[Part, set[int]] = {}
    num_images = min(len(data.indices), MAX_IMAGES)
    for place in range(num_images):
        for one, own in known.get(digest(place), ()):
            for position in data.order.find(place, data.num_examples):
                sample = sample_at(position, ranges)
                if place != own and sample is not None:
                    again.setdefault(one, set()).add(sample)
    found = {one: sorted(samples) for one, samples in again.items()}
    return Epoch(num_images / len(data.indices), np.zeros(0, np.int64), found)


def hashes_of(tokens: np.ndarray) -> np.ndarray:
    """Returns a hash of the tokens from each position on, uint64 [n, t - ANCHOR + 1]."""
    columns = max(tokens.shape[1] - ANCHOR + 1, 0)
    hashes = np.zeros((len(tokens), columns), np.uint64)
    for shift in range(ANCHOR if columns else 0):
        hashes *= _FACTOR
        hashes += tokens[:, shift : shift + columns].astype(np.uint64) + np.uint64(1)
    return hashes


def _anchors(views: Sequence[View]) -> dict[int, list[Part]]:
    """Returns hash -> the documents whose middle has it."""
    found: dict[int, list[Part]] = {}
    for view in views:
        for part in view.documents:
            middle = (part.first + part.last - ANCHOR) // 2
            if part.last - part.first >= ANCHOR:
                tokens = view.rows["tokens"][part.row : part.row + 1, middle : middle + ANCHOR]
                found.setdefault(int(hashes_of(tokens)[0, 0]), []).append(part)
    return found
