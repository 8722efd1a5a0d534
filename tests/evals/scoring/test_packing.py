import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.packing import Packed, PackedRow, fill_rows
from jaxpretrain.evals.scoring.sharing import Query, QueryGroup, find_queries
from jaxpretrain.models.contract import Branches


def _pack(requests: list[Request], **options: int) -> Packed:
    return Packed(requests, **{"context_length": 48, "batch_tokens": 256, **options})


def _random(num_requests: int) -> list[Request]:
    random = np.random.default_rng(0)

    def ids(most: int) -> list[int]:
        return random.integers(1, 9, size=random.integers(1, most)).tolist()

    return [Request(ids(30), ids(8)) for _ in range(num_requests)]


def _scored(packed: Packed) -> dict[int, list[tuple[tuple[int, ...], int]]]:
    """Request -> what each of its tokens is scored after, and the token, in order of position."""
    found: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for batch, (_, shape) in zip(packed, packed.batches, strict=True):
        assert {rows.shape for rows in batch.rows.values()} == {shape.rows}
        assert (batch.places.shape, batch.targets.shape) == (shape.places, shape.targets)
        in_group = shape.rows[0] // len(batch.places)
        for group, n in zip(*np.nonzero(batch.owners >= 0), strict=True):
            place = int(batch.places[group, batch.after[group, n]])
            row, index = divmod(place, shape.rows[1])
            arrays = {name: rows[group * in_group + row] for name, rows in batch.rows.items()}
            scored = (tuple(_seen(arrays, index)), int(batch.targets[group, n]))
            found.setdefault(int(batch.owners[group, n]), []).append(scored)
    return {number: sorted(scored, key=lambda s: len(s[0])) for number, scored in found.items()}


def _seen(row: dict[str, np.ndarray], index: int) -> list[int]:
    """The tokens that the one there sees, itself included."""
    tokens = row["tokens"][: index + 1]
    if len(row) == 1:
        return tokens.tolist()
    stems, branches, positions = (row[name][: index + 1] for name in Branches._fields)
    visible = (stems == stems[-1]) & ((branches == 0) | (branches == branches[-1]))
    assert stems[-1] > 0
    assert positions[visible].tolist() == list(range(visible.sum()))
    return tokens[visible].tolist()


@pytest.mark.parametrize("num_data", [1, 4])
def test_each_token_is_scored_once_after_all_that_precedes_it(num_data: int):
    requests = _random(200)
    scored = _scored(_pack(requests, num_data=num_data))
    for number, request in enumerate(requests):
        text = [*request.context, *request.continuation]
        ends = range(len(request.context), len(text))
        assert scored[number] == [(tuple(text[:end]), text[end]) for end in ends]


def test_what_queries_begin_with_is_run_once():
    context = [5, 6, 7]
    words = [Request(context, [word]) for word in range(1, 5)]
    assert _pack(words).num_tokens == 3
    longer = [*words, Request(context, [8, 9]), Request(context, [8, 9, 10]), Request([5], [6])]
    assert _pack(longer).num_tokens == 5
    assert _pack([*longer, Request(context, [9, 9])]).num_tokens == 5 + 1
    assert _pack([Request([1, 2], [3, 4]), Request([1, 2], [4, 4])]).num_tokens == 4


def test_a_long_query_loses_its_beginning_and_is_counted():
    requests = [Request(list(range(1, 61)), [61, 62]), Request(list(range(1, 48)), [7, 8])]
    packed = _pack(requests)
    assert packed.truncated.tolist() == [True, False]
    text = tuple(range(14, 62))
    assert _scored(packed)[0] == [(text[:-1], 61), (text, 62)]


def test_a_continuation_longer_than_the_context_is_refused():
    assert _scored(_pack([Request([1], list(range(48)))]))
    with pytest.raises(
        InputError, match="a continuation has 49 tokens, more than the context of 48"
    ):
        _pack([Request([1], list(range(49)))])


def test_batches_have_few_shapes_and_little_padding():
    packed = _pack(_random(500), batch_tokens=512)
    assert len(packed.batches) > 10
    assert len(packed.shapes) <= 5  # stems with branches, and 16, 24, 32, 48
    assert len({(shape.has_branches, shape.rows) for shape in packed.shapes}) == len(packed.shapes)
    padded = sum(shape.rows[0] * shape.rows[1] for _, shape in packed.batches)
    assert packed.num_tokens > 0.7 * padded


def test_batches_keep_to_their_number_of_tokens_and_divide():
    packed = _pack(_random(300), batch_tokens=512, num_data=4)
    for _, shape in packed.batches:
        assert shape.rows[0] % 4 == 0 and shape.rows[0] * shape.rows[1] <= 512
        assert shape.places[0] == 4
    (batch,) = _pack([Request(range(20), [1])], num_data=4, batch_tokens=8).batches
    assert batch[1].rows == (4, 24)


def test_nothing_is_no_batch():
    assert list(_pack([])) == []


def _group(stem: int, *branches: int) -> QueryGroup:
    """Branches of so many tokens; each ends with the scored ones."""
    queries = [Query(np.full(stem + size, i)) for i, size in enumerate(branches, 1)]
    return QueryGroup(queries, stem)


def test_places_are_where_the_tokens_before_them_lie():
    requests = [Request([5, 6], [7, 8]), Request([5, 6], [9, 8]), Request([5], [6, 7])]
    queries, _ = find_queries(requests, 48)
    row = PackedRow(16)
    row.add(QueryGroup([Query(np.array([1, 2]))], 1))
    row.add(QueryGroup(queries, 2))
    assert row.tokens == [1, 2, 5, 6, 9, 7]
    assert row.numbers == [(1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 0, 1), (2, 1, 2), (2, 2, 2)]
    indices = list(row.places)
    after = [row.tokens[indices[number]] for number in row.after]
    scored = sorted(zip(row.owners, after, row.targets, strict=True))
    assert scored == [(0, 6, 7), (0, 7, 8), (1, 6, 9), (1, 9, 8), (2, 5, 6), (2, 6, 7)]
    assert len(indices) == 4  # after the 6, three requests score, and the head is applied once


def test_a_row_of_one_query_has_no_branches():
    ((query,), _) = find_queries([Request([5, 6], [7, 8])], 48)
    row = PackedRow.of_query(query, 24)
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
