"""Rows of tokens to run: a row holds one query, or several groups of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat

from jaxpretrain.evals.scoring.sharing import ROW_LENGTHS, Group, Query, round_up

_ATTENTION = 2048
"""Length of rows in which attention costs as much as all other layers."""


@dataclass
class Row:
    """Tokens that are run together, and the tokens that are scored after some of them."""

    length: int
    """Number of tokens with padding."""
    tokens: list[int] = field(default_factory=list)
    numbers: list[tuple[int, int, int]] = field(default_factory=list)
    """The three numbers of `Branches` for each token; [] where the row is one query."""
    places: dict[int, int] = field(default_factory=dict)
    """Numbers of the places, by their indices in the row; tokens are scored after a place."""
    after: list[int] = field(default_factory=list)
    """The number of the place before each token that is scored."""
    targets: list[int] = field(default_factory=list)
    """The tokens that are scored."""
    owners: list[int] = field(default_factory=list)
    """The request that each of them is scored for."""

    @classmethod
    def of_query(cls, query: Query, length: int) -> "Row":
        """Returns a row of that length with one query."""
        row = cls(length, query.tokens.tolist())
        row._score(query, query.positions)
        return row

    def add(self, group: Group) -> None:
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

    def _score(self, query: Query, indices: Sequence[int]) -> None:
        self.after += [self.places.setdefault(index, len(self.places)) for index in indices]
        self.targets += query.targets
        self.owners += query.owners


def fill_rows(groups: Sequence[Group], most: int) -> list[Row]:
    """Returns the groups in rows of the length, up to `most`, that costs least."""
    lengths = {min(length, most) for length in ROW_LENGTHS}
    filled = min((_fill(groups, length) for length in sorted(lengths)), key=_cost)
    rows = []
    for length, in_row in filled:
        rows.append(Row(length))
        for group in in_row:
            rows[-1].add(group)
    return rows


def _fill(groups: Sequence[Group], length: int) -> list[tuple[int, list[Group]]]:
    """Returns rows of `length`, longer only where a group is. The largest group comes first, and
    each goes into the row that it fills best.
    """
    rows: list[tuple[int, list[Group]]] = []
    by_space: dict[int, list[list[Group]]] = defaultdict(list)  # tokens that are free -> rows
    for group in sorted(groups, key=lambda group: group.num_tokens, reverse=True):
        size = group.num_tokens
        space = next((free for free in range(size, length + 1) if by_space[free]), None)
        if space is None:
            space = length if size <= length else round_up(size)
            rows.append((space, []))
            by_space[space].append(rows[-1][1])
        row = by_space[space].pop()
        row.append(group)
        by_space[space - size].append(row)
    return rows


def _cost(rows: Sequence[tuple[int, list[Group]]]) -> int:
    return sum(length * (_ATTENTION + length) for length, _ in rows)
