import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.scoring import sharing
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.sharing import Query, find_queries, share


def _queries(*texts: Sequence[int], context_length: int = 600) -> list[Query]:
    requests = [Request(text, [0]) for text in texts]
    return find_queries(requests, context_length)[0]


def _random(num_texts: int, seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(2, size=random.integers(1, 40)).tolist() for _ in range(num_texts)]


def test_queries_that_begin_others_are_answered_by_them():
    context = [5, 6, 7]
    requests = [Request(context, [1]), Request(context, [8, 9, 1]), Request([5], [2]), *[]]
    (query,), truncated = find_queries(requests, 48)
    assert query.tokens.tolist() == [5, 6, 7, 8, 9]
    scored = zip(query.owners, query.positions, query.targets, strict=True)
    assert sorted(scored) == [(0, 2, 1), (1, 2, 8), (1, 3, 9), (1, 4, 1), (2, 0, 2)]
    assert not truncated.any()


def test_what_is_left_of_long_queries_need_not_begin_alike():
    """The longer the continuation, the more its context loses."""
    context = list(range(100, 148))
    requests = [Request(context, [1, 2]), Request(context, [3, 4]), Request(context, [5, 6, 7])]
    queries, truncated = find_queries(requests, 48)
    assert truncated.tolist() == [True, True, True]
    groups, alone = share(queries)
    ((group,), (other,)) = groups, alone
    assert (group.stem, group.num_tokens) == (47, 49)
    assert group.queries[0].tokens[:47].tolist() == context[1:]
    assert other.tokens.tolist() == [*context[2:], 5, 6]


def test_a_continuation_longer_than_the_context_is_refused():
    find_queries([Request([1], list(range(48)))], 48)
    with pytest.raises(InputError, match="a continuation has 49 tokens, more than the context"):
        find_queries([Request([1], list(range(49)))], 48)


def test_a_stem_is_what_all_queries_of_a_group_begin_with():
    queries = _queries(*_random(60, 0))
    groups, alone = share(queries)
    assert len(groups) > 2
    for group in groups:
        texts = [tuple(query.tokens.tolist()) for query in group.queries]
        assert len({text[: group.stem] for text in texts}) == 1
        assert len({text[: group.stem + 1] for text in texts}) > 1
        assert group.num_tokens == group.stem + sum(len(text) - group.stem for text in texts)
    shared = [id(query) for group in groups for query in group.queries]
    assert sorted([*shared, *map(id, alone)]) == sorted(map(id, queries))


@pytest.mark.parametrize("seed", range(8))
def test_no_other_groups_of_neighbours_cost_less(seed: int):
    queries = _queries(*_random(9, seed))
    groups, alone = share(queries)
    cost = float(sum(len(query.tokens) for query in alone))
    cost += sum(4 / 3 * group.num_tokens for group in groups)
    assert cost == pytest.approx(min(_costs(queries)))


def _costs(queries: list[Query]) -> Iterator[float]:
    """Of all ways to cut the list into groups."""
    for cuts in itertools.product([False, True], repeat=len(queries) - 1):
        ends = [*(i for i, is_cut in enumerate(cuts, 1) if is_cut), len(queries)]
        yield sum(map(_cost, (queries[a:b] for a, b in itertools.pairwise([0, *ends]))))


def _cost(group: list[Query]) -> float:
    texts = [query.tokens.tolist() for query in group]
    if len(texts) == 1:
        return len(texts[0])
    stem = next(i for i in itertools.count() if len({(*t[:i], *t[i : i + 1]) for t in texts}) > 1)
    return 4 / 3 * (sum(map(len, texts)) - stem * (len(texts) - 1)) if stem else float("inf")


def test_questions_do_not_share_what_they_happen_to_begin_with():
    """Two tokens in common do not make one group of all questions; each is one of its own."""
    random = np.random.default_rng(1)
    questions = [[7, 7, *random.integers(8, 99, size=30).tolist()] for _ in range(20)]
    texts = [[*question, *answer] for question in questions for answer in ([1, 2], [3, 4], [5, 6])]
    groups, alone = share(_queries(*texts))
    assert not alone
    assert sorted(group.stem for group in groups) == [32] * 20


def test_what_has_nothing_in_common_is_run_by_itself():
    texts = [[i, *range(20)] for i in range(5)]
    groups, alone = share(_queries(*texts))
    assert groups == [] and len(alone) == 5
    assert share([]) == ([], [])


def test_groups_are_not_much_longer_than_their_queries():
    answers = [[*range(100, 400), i, *range(50)] for i in range(90)]
    groups, alone = share(_queries(*answers))
    assert not alone and len(groups) > 4
    assert max(group.num_tokens for group in groups) <= 2 * 351
    letters = [[1, 2, 3, i, *range(3)] for i in range(200)]
    groups, _ = share(_queries(*letters))
    assert 400 < max(group.num_tokens for group in groups) <= max(sharing.ROW_LENGTHS)
