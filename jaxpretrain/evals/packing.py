"""Requests to batches of few shapes, without computing anything twice.

Scoring a request means running its query, the context and all of the continuation but its last
token. The model is causal, so a query that begins another one needs no run of its own: its scores
are read off the longer one. Letters after one question, or single words, are so scored by one run
of the question, and equal queries by one. Queries are sorted by length and cut into batches of
about one number of tokens; all batches of one length have one shape.

Shapes: b rows, t tokens, g groups of b / g rows (one for each data-parallel device), n places of
each group where a token is scored.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.encode import Request

_LENGTHS = tuple(size for k in range(4, 31) for size in (2**k, 3 * 2 ** (k - 1)))
"""Of rows, as far as the context goes: powers of two and what is half way to the next."""
_PLACES = 64
"""Numbers of places are multiples of this."""


@dataclass(frozen=True)
class Shape:
    """Of a batch: (b, t) and (g, n)."""

    rows: tuple[int, int]
    places: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Rows that are run together."""

    tokens: np.ndarray  # int32 [b, t]
    places: np.ndarray  # int32 [g, n]: row within the group * t + position, after which ...
    targets: np.ndarray  # int32 [g, n]: ... this token is scored ...
    owners: np.ndarray  # int64 [g, n]: for this request; -1: for none


@dataclass
class _Row:
    query: np.ndarray
    positions: list[int]
    targets: list[int]
    owners: list[int]


class Packed:
    """Requests, planned once and run as often as there are parameters to score them with.

    Args:
      requests: what is scored.
      context_length: tokens that the model reads; longer queries lose their beginning.
      batch_tokens: of one batch, over all devices.
      num_data: devices that the rows are divided over.

    Raises:
      InputError: a continuation alone is longer than the context.
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
        self.truncated = np.zeros(len(requests), bool)
        self._rows = self._merge(requests, context_length)
        self.num_tokens = sum(len(row.query) for row in self._rows)
        """Tokens that are run, without padding."""

        self._rows.sort(key=lambda row: len(row.query), reverse=True)
        self.batches = self._cut(context_length, batch_tokens, num_data)
        """Rows, by their order, and the shape that holds them."""

    @property
    def shapes(self) -> set[Shape]:
        """All that have to be compiled."""
        return {shape for _, shape in self.batches}

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""
        for rows, shape in self.batches:
            (_, length), (num_groups, _) = shape.rows, shape.places
            tokens = np.zeros(shape.rows, np.int32)
            places, targets = np.zeros((2, *shape.places), np.int32)
            owners = np.full(shape.places, -1, np.int64)
            for group in range(num_groups):
                first = group * (shape.rows[0] // num_groups)
                used = 0
                for i, row in enumerate(self._rows[rows][group::num_groups]):
                    tokens[first + i, : len(row.query)] = row.query
                    scored = slice(used, used := used + len(row.targets))
                    places[group, scored] = i * length + np.array(row.positions)
                    targets[group, scored] = row.targets
                    owners[group, scored] = row.owners
            yield Batch(tokens, places, targets, owners)

    def _cut(
        self, context_length: int, batch_tokens: int, num_groups: int
    ) -> list[tuple[slice, Shape]]:
        pieces: list[tuple[slice, tuple[int, int]]] = []
        start = 0
        while start < len(self._rows):
            longest = len(self._rows[start].query)
            length = min(context_length, next(size for size in _LENGTHS if size >= longest))
            # No more rows than there are, where that is less than a batch.
            in_group = min(batch_tokens // length // num_groups, -(-len(self._rows) // num_groups))
            num_rows = max(1, in_group) * num_groups
            rows = slice(start, start := min(start + num_rows, len(self._rows)))
            pieces.append((rows, (num_rows, length)))
        num_places: dict[tuple[int, int], int] = defaultdict(int)
        for rows, size in pieces:
            for group in range(num_groups):
                places = sum(len(row.targets) for row in self._rows[rows][group::num_groups])
                num_places[size] = max(num_places[size], -(-places // _PLACES) * _PLACES)
        return [(rows, Shape(size, (num_groups, num_places[size]))) for rows, size in pieces]

    def _merge(self, requests: Sequence[Request], context_length: int) -> list[_Row]:
        """Rows of queries that begin no other query, with the requests that each one answers."""
        queries = []
        for number, request in enumerate(requests):
            if len(request.continuation) > context_length:
                raise InputError(
                    f"a continuation has {len(request.continuation)} tokens, more than the "
                    f"context of {context_length}"
                )
            query = np.array([*request.context, *request.continuation[:-1]], ">i4")
            self.truncated[number] = len(query) > context_length
            queries.append(query[-context_length:].tobytes())
        rows: list[_Row] = []
        host = b""
        # In the order of their bytes, which is that of their tokens, what begins others comes
        # right before them; so from the last on, a query begins the latest row or none.
        for number in sorted(range(len(queries)), key=queries.__getitem__, reverse=True):
            if not rows or not host.startswith(queries[number]):
                host = queries[number]
                rows.append(_Row(np.frombuffer(host, ">i4"), [], [], []))
            continuation = requests[number].continuation
            end = len(queries[number]) // 4
            rows[-1].positions += range(end - len(continuation), end)
            rows[-1].targets += continuation
            rows[-1].owners += [number] * len(continuation)
        return rows
