"""Batches of few shapes that score requests, without computing anything twice.

A row holds one query, or several groups of them. Rows are sorted by length and cut into batches of
about one number of tokens; all batches of one length have one shape.

Shapes: b rows, t tokens, g groups of b / g rows (one for each data-parallel device), n places of
each group after which tokens are scored, m tokens that are scored there.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from jaxpretrain.evals.scoring import sharing
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.models.contract import Branches

_ATTENTION = 2048
"""Length of rows in which attention costs as much as all other layers."""


@dataclass
class PackedRow:
    """Tokens that are run together, and the tokens that are scored after some of them."""

    length: int
    """Number of tokens with padding."""
    tokens: list[int] = field(default_factory=list)
    numbers: list[tuple[int, int, int]] = field(default_factory=list)
    """The three numbers of `Branches` for each token; [] where the row is one query."""
    places: dict[int, int] = field(default_factory=dict)  # by the index in the row
    after: list[int] = field(default_factory=list)  # after the place of this number ...
    targets: list[int] = field(default_factory=list)  # ... this token is scored ...
    owners: list[int] = field(default_factory=list)  # ... for this request

    @classmethod
    def of_query(cls, query: sharing.Query, length: int) -> "PackedRow":
        """Returns a row of that length with one query."""
        row = cls(length, query.tokens.tolist())
        row._score(query, query.positions)
        return row

    def add(self, group: sharing.QueryGroup) -> None:
        """Appends the stem of a group and its branches. Stems count from 1, as padding has 0."""
        number = self.numbers[-1][0] + 1 if self.numbers else 1
        begin, stem = len(self.tokens), range(group.stem)
        self.tokens += group.queries[0].tokens[: group.stem].tolist()
        self.numbers += zip(repeat(number), repeat(0), stem, strict=False)
        for branch, query in enumerate(group.queries, 1):
            # Where the whole query would begin so that it ends where its branch does.
            shifted = len(self.tokens) - group.stem
            positions = range(group.stem, len(query.tokens))
            self.tokens += query.tokens[group.stem :].tolist()
            self.numbers += zip(repeat(number), repeat(branch), positions, strict=False)
            self._score(query, [p + (begin if p in stem else shifted) for p in query.positions])

    def _score(self, query: sharing.Query, indices: Sequence[int]) -> None:
        self.after += [self.places.setdefault(index, len(self.places)) for index in indices]
        self.targets += query.targets
        self.owners += query.owners


@dataclass(frozen=True)
class Shape:
    """The shape of a batch: (b, t), (g, n) and (g, m)."""

    rows: tuple[int, int]
    places: tuple[int, int]
    targets: tuple[int, int]
    has_branches: bool


@dataclass(frozen=True)
class Batch:
    """Rows that are run together."""

    rows: dict[str, np.ndarray]  # int32 [b, t]: `tokens` and, if any, the fields of `Branches`
    places: np.ndarray  # int32 [g, n]: row within the group * t + index; each once
    after: np.ndarray  # int32 [g, m]: after the place of this number ...
    targets: np.ndarray  # int32 [g, m]: ... this token is scored ...
    owners: np.ndarray  # int64 [g, m]: for this request; -1: for none


class Packed:
    """Requests, planned once and run as often as there are parameters to score them with.

    Queries that are longer than the context lose their beginning. Batches have `batch_tokens` over
    all devices. Raises InputError where a continuation alone is longer than the context.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        context_length: int,
        batch_tokens: int,
        num_data: int = 1,
    ) -> None:
        self.num_requests = len(requests)
        queries, self.truncated = sharing.find_queries(requests, context_length)
        groups, alone = sharing.share(queries)
        lengths = (min(context_length, sharing.round_up(len(query.tokens))) for query in alone)
        single = [
            PackedRow.of_query(query, length) for query, length in zip(alone, lengths, strict=True)
        ]
        on_device = batch_tokens // num_data
        shared = fill_rows(groups, on_device)
        self.num_tokens = sum(len(row.tokens) for row in (*single, *shared))
        """Number of tokens that are run, without padding."""
        self.batches = [*_cut(single, on_device, num_data), *_cut(shared, on_device, num_data)]
        """The rows of each batch, and the shape that holds them."""

    @property
    def shapes(self) -> set[Shape]:
        """The shapes that have to be compiled."""
        return {shape for _, shape in self.batches}

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches."""
        return (_batch(rows, shape) for rows, shape in self.batches)


def fill_rows(groups: Sequence[sharing.QueryGroup], most: int) -> list[PackedRow]:
    """Returns the groups in rows of the length, up to `most`, that costs least."""
    lengths = {min(length, most) for length in sharing.ROW_LENGTHS}
    filled = min((_fill(groups, length) for length in sorted(lengths)), key=_cost)
    rows = []
    for length, in_row in filled:
        rows.append(PackedRow(length))
        for group in in_row:
            rows[-1].add(group)
    return rows


def _fill(
    groups: Sequence[sharing.QueryGroup], length: int
) -> list[tuple[int, list[sharing.QueryGroup]]]:
    """Returns rows of `length`, or of a longer group; each goes into the row it fills best."""
    rows: list[tuple[int, list[sharing.QueryGroup]]] = []
    by_space: dict[int, list[list[sharing.QueryGroup]]] = defaultdict(
        list
    )  # tokens that are free -> rows
    for group in sorted(groups, key=lambda group: group.num_tokens, reverse=True):
        size = group.num_tokens
        space = next((free for free in range(size, length + 1) if by_space[free]), None)
        if space is None:
            space = length if size <= length else sharing.round_up(size)
            rows.append((space, []))
            by_space[space].append(rows[-1][1])
        row = by_space[space].pop()
        row.append(group)
        by_space[space - size].append(row)
    return rows


def _cost(rows: Sequence[tuple[int, list[sharing.QueryGroup]]]) -> int:
    return sum(length * (_ATTENTION + length) for length, _ in rows)


def _batch(rows: Sequence[PackedRow], shape: Shape) -> Batch:
    num_groups, (num_rows, length) = shape.places[0], shape.rows
    tokens = np.zeros(shape.rows, np.int32)
    numbers = np.zeros((*shape.rows, 3), np.int32)
    places = np.zeros(shape.places, np.int32)
    after, targets = np.zeros((2, *shape.targets), np.int32)
    owners = np.full(shape.targets, -1, np.int64)
    for group in range(num_groups):
        num_places = num_scored = 0
        for i, row in enumerate(rows[group::num_groups]):
            in_row = group * num_rows // num_groups + i, slice(len(row.tokens))
            tokens[in_row] = row.tokens
            if row.numbers:
                numbers[in_row] = row.numbers
            scored = group, slice(num_scored, num_scored := num_scored + len(row.targets))
            after[scored] = num_places + np.array(row.after)
            targets[scored] = row.targets
            owners[scored] = row.owners
            found = group, slice(num_places, num_places := num_places + len(row.places))
            places[found] = i * length + np.array(list(row.places))
    arrays = {"tokens": tokens}
    if shape.has_branches:
        arrays |= zip(Branches._fields, np.moveaxis(numbers, -1, 0), strict=True)
    return Batch(arrays, places, after, targets, owners)


def _cut(
    rows: Sequence[PackedRow], batch_tokens: int, num_groups: int
) -> list[tuple[list[PackedRow], Shape]]:
    """Returns batches of one kind of row, the longest first, of `batch_tokens` in each group."""
    rows = sorted(rows, key=lambda row: (row.length, len(row.tokens)), reverse=True)
    pieces: dict[tuple[int, int], list[list[PackedRow]]] = defaultdict(list)  # by number and length
    start = 0
    while start < len(rows):
        length = rows[start].length
        # No more rows than there are, where that is less than a batch.
        in_group = max(1, min(batch_tokens // length, -(-len(rows) // num_groups)))
        num_rows = in_group * num_groups
        pieces[num_rows, length].append(rows[start : start + num_rows])
        start += num_rows
    batches = []
    for size, same in pieces.items():
        dealt = [piece[group::num_groups] for piece in same for group in range(num_groups)]
        num_places = max(sum(len(row.places) for row in group) for group in dealt)
        num_scored = max(sum(len(row.targets) for row in group) for group in dealt)
        # Multiples of 64, so that shapes are few.
        groups = ((num_groups, -(-number // 64) * 64) for number in (num_places, num_scored))
        shape = Shape(size, *groups, has_branches=bool(rows[0].numbers))
        batches += [(piece, shape) for piece in same]
    return batches
