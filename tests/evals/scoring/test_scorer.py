from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.scorer import Scorer

RANDOM = np.random.default_rng(2)


def _ids(length: int) -> list[int]:
    return RANDOM.integers(290, size=length).tolist()


CONTEXT = _ids(9)
REQUESTS = [
    *(Request(CONTEXT, [word]) for word in range(4)),  # of one run
    *(Request(CONTEXT, [7, 8, word]) for word in range(3)),
    *(Request(_ids(length), _ids(3 + length % 4)) for length in range(1, 40, 2)),
    Request(_ids(70), _ids(5)),  # too long
]


@pytest.mark.parametrize(("num_devices", "batch_tokens"), [(1, 256), (1, 48), (8, 512)])
def test_scores_are_those_of_each_text_by_itself(
    make_scorer: Any, log_likelihood: Any, num_devices: int, batch_tokens: int
):
    scorer, params = make_scorer(num_devices, batch_tokens)
    scores = scorer(params, scorer.prepare(REQUESTS)).log_likelihoods
    expected = [log_likelihood(r.context, r.continuation) for r in REQUESTS]
    np.testing.assert_allclose(scores, expected, rtol=2e-5)


def test_a_continuation_is_greedy_when_each_token_is_the_likeliest(make_scorer: Any):
    scorer, params = make_scorer()
    one = [Request(CONTEXT, [token]) for token in range(290)]
    greedy = scorer(params, scorer.prepare(one)).is_greedy
    (best,) = np.flatnonzero(greedy)
    likelihoods = scorer(params, scorer.prepare(one)).log_likelihoods
    assert best == likelihoods.argmax()
    two = [Request(CONTEXT, [int(best), token]) for token in range(290)]
    two.append(Request(CONTEXT, [(int(best) + 1) % 290, int(best)]))
    assert scorer(params, scorer.prepare(two)).is_greedy.sum() == 1


def test_equal_requests_score_equally(make_scorer: Any):
    scorer, params = make_scorer()
    again = [*REQUESTS, *reversed(REQUESTS)]
    scores = scorer(params, scorer.prepare(again)).log_likelihoods
    np.testing.assert_array_equal(scores[: len(REQUESTS)], scores[: len(REQUESTS) - 1 : -1])


def test_parameters_are_neither_moved_nor_changed_and_nothing_is_compiled(make_scorer: Any):
    scorer, params = make_scorer(8, 512)
    packed = scorer.prepare(REQUESTS)
    before = jax.tree.map(np.array, params)
    first = scorer(params, packed)
    with jax.transfer_guard("disallow"), jax.log_compiles():
        compiled = dict(scorer._compiled)
        second = scorer(params, packed)
    assert scorer._compiled == compiled
    np.testing.assert_array_equal(first.log_likelihoods, second.log_likelihoods)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_a_model_without_tokens_is_refused():
    model: Any = SimpleNamespace()
    with pytest.raises(InputError, match="predicts no tokens"):
        Scorer(model, layout=SimpleNamespace(), params=None, batch_tokens=1)  # pyright: ignore
