import numpy as np
import pytest

from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.rows import Row, fill_rows
from jaxpretrain.evals.scoring.sharing import Group, Query, find_queries


def _group(stem: int, *branches: int) -> Group:
    """Branches of so many tokens; each ends with the scored ones."""
    queries = [Query(np.full(stem + size, i)) for i, size in enumerate(branches, 1)]
    return Group(queries, stem)


def test_places_are_where_the_tokens_before_them_lie():
    requests = [Request([5, 6], [7, 8]), Request([5, 6], [9, 8]), Request([5], [6, 7])]
    queries, _ = find_queries(requests, 48)
    row = Row(16)
    row.add(Group([Query(np.array([1, 2]))], 1))
    row.add(Group(queries, 2))
    assert row.tokens == [1, 2, 5, 6, 9, 7]
    assert row.numbers == [(1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 0, 1), (2, 1, 2), (2, 2, 2)]
    indices = list(row.places)
    after = [row.tokens[indices[number]] for number in row.after]
    scored = sorted(zip(row.owners, after, row.targets, strict=True))
    assert scored == [(0, 6, 7), (0, 7, 8), (1, 6, 9), (1, 9, 8), (2, 5, 6), (2, 6, 7)]
    assert len(indices) == 4  # after the 6, three requests score, and the head is applied once


def test_a_row_of_one_query_has_no_branches():
    ((query,), _) = find_queries([Request([5, 6], [7, 8])], 48)
    row = Row.of_query(query, 24)
    assert (row.length, row.tokens, row.numbers) == (24, [5, 6, 7], [])
    assert (list(row.places), row.after, row.targets) == ([1, 2], [0, 1], [7, 8])


def test_rows_are_filled_well():
    sizes = np.random.default_rng(0).integers(20, 150, size=200)
    groups = [_group(int(size) - 8, 3, 5) for size in sizes]
    rows = fill_rows(groups, most=4096)
    assert sum(len(row.tokens) for row in rows) == sizes.sum()
    assert len({row.length for row in rows}) == 1
    assert all(len(row.tokens) == len(row.numbers) <= row.length for row in rows)
    assert sizes.sum() > 0.95 * sum(row.length for row in rows)


@pytest.mark.parametrize(("stem", "most", "length"), [(900, 4096, 1024), (100, 64, 128)])
def test_a_group_that_is_longer_has_a_row_of_its_length(stem: int, most: int, length: int):
    rows = fill_rows([_group(stem, 10, 10), _group(20, 5, 5)], most)
    assert length in {row.length for row in rows}
    assert fill_rows([], most) == []
