"""Queries that begin alike: their common tokens are run once.

Scoring a request means running its query, the context and all of the continuation but its last
token. The model is causal, so the score of a token depends on nothing that follows. A query that
begins another one needs no run of its own: letters after one question, or single words, are scored
by one run of the question. Other queries that begin alike, such as those of the answers to a
question, are run as one stem with branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.scoring.encode import Request

LENGTHS = tuple(size for k in range(4, 31) for size in (2**k, 3 * 2 ** (k - 1)))
"""The lengths of rows: powers of two and the numbers half way to the next."""
ROW_LENGTHS = (256, 384, 512)
"""The lengths of rows of stems with branches, where no group is longer."""
_PRICE = 4 / 3
"""The cost of a token among branches, relative to one in a row with a single query: attention runs
by plain operations, and pairs are masked."""


@dataclass
class Query:
    """Tokens to run, and the tokens that are scored after some of them."""

    tokens: np.ndarray  # int32 [t]
    positions: list[int] = field(default_factory=list)  # after this one ...
    targets: list[int] = field(default_factory=list)  # ... this token is scored ...
    owners: list[int] = field(default_factory=list)  # ... for this request


@dataclass(frozen=True)
class QueryGroup:
    """Queries that begin with the same tokens."""

    queries: Sequence[Query]
    stem: int
    """Number of these tokens; they are run once."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens to run."""
        return self.stem + sum(len(query.tokens) - self.stem for query in self.queries)


def find_queries(
    requests: Sequence[Request], context_length: int
) -> tuple[list[Query], np.ndarray]:
    """Returns the queries that begin no other one, and a mask of the requests that are truncated.

    Each query has the requests that it answers. Neighbours begin alike. A text that is too long
    loses its beginning; InputError where a continuation alone is too long.
    """
    texts = []
    truncated = np.zeros(len(requests), bool)
    for number, request in enumerate(requests):
        if len(request.continuation) > context_length:
            raise InputError(
                f"a continuation has {len(request.continuation)} tokens, more than the context of "
                f"{context_length}"
            )
        # In this order of bytes, bytes compare as tokens do.
        query = np.array([*request.context, *request.continuation[:-1]], ">i4")
        truncated[number] = len(query) > context_length
        texts.append(query[-context_length:].tobytes())
    queries: list[Query] = []
    host = b""
    # In order, a query comes right before those that it begins; so from the last on, a query begins
    # the latest of those that are kept, or none.
    for number in sorted(range(len(texts)), key=texts.__getitem__, reverse=True):
        if not queries or not host.startswith(texts[number]):
            host = texts[number]
            queries.append(Query(np.frombuffer(host, ">i4").astype(np.int32)))
        continuation = requests[number].continuation
        end = len(texts[number]) // 4
        queries[-1].positions += range(end - len(continuation), end)
        queries[-1].targets += continuation
        queries[-1].owners += [number] * len(continuation)
    return queries, truncated


def share(queries: Sequence[Query]) -> tuple[list[QueryGroup], list[Query]]:
    """Returns groups of neighbours that are run together, and queries that are run alone.

    The choice has the least cost, found from the first query on: the best that ends with a query is
    the best up to where its group begins, and that group. A group has at most as many tokens as
    the longest of `ROW_LENGTHS`, or as two of its longest query.
    """
    common = [0, *(_num_common(a.tokens, b.tokens) for a, b in pairwise(queries))]
    lengths = [len(query.tokens) for query in queries]
    costs, begins = [0.0], []
    for last, length in enumerate(lengths):
        best = costs[last] + length, last
        stem = total = longest = length
        for first in range(last - 1, -1, -1):
            stem = min(stem, common[first + 1])
            longest = max(longest, lengths[first])
            total += lengths[first]
            num_tokens = total - stem * (last - first)
            if stem == 0 or num_tokens > max(*ROW_LENGTHS, 2 * longest):
                break
            best = min(best, (costs[first] + _PRICE * num_tokens, first))
        costs.append(best[0])
        begins.append(best[1])
    groups, alone = [], []
    end = len(queries)
    while end:
        first = begins[end - 1]
        if end - first > 1:
            groups.append(QueryGroup(queries[first:end], min(common[first + 1 : end])))
        else:
            alone.append(queries[first])
        end = first
    return groups, alone


def round_up(length: int) -> int:
    """Returns the length of the shortest row that holds so many tokens."""
    return next(size for size in LENGTHS if size >= length)


def _num_common(a: np.ndarray, b: np.ndarray) -> int:
    """Returns the number of tokens that both begin with."""
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    return int(differs.argmax()) if differs.any() else size
