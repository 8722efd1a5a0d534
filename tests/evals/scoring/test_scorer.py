from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.contract import Interrupted
from jaxpretrain.evals.scoring import scorer as module
from jaxpretrain.evals.scoring.encode import Request
from jaxpretrain.evals.scoring.scorer import Scorer, next_token_scores, read_back
from tests.evals.conftest import CONTEXT as CONTEXT_LENGTH
from tests.evals.conftest import DECODER, EXAMPLE


def test_outputs_come_in_order_some_behind_what_is_dispatched():
    dispatched = []

    def outputs() -> Iterator[tuple[str, Any]]:
        for number in range(9):
            dispatched.append(number)
            yield f"batch {number}", jnp.full(2, number)

    read = []
    for name, array in read_back(outputs()):
        assert isinstance(array, np.ndarray)
        read.append((name, array.tolist()))
        assert len(read) < len(dispatched) <= len(read) + 4 or len(dispatched) == 9
    assert read == [(f"batch {number}", [number, number]) for number in range(9)]


def test_nothing_is_nothing():
    assert list(read_back([])) == []


def test_what_is_raised_between_batches_ends_it():
    def outputs() -> Iterator[int]:
        for number in range(9):
            dispatched.append(number)
            yield number

    def interrupt() -> None:
        if len(dispatched) == 3:
            raise Interrupted

    dispatched: list[int] = []
    with pytest.raises(Interrupted):
        list(read_back(outputs(), interrupt))
    assert dispatched == [0, 1, 2]


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


@pytest.mark.parametrize("logits_at_once", [512, 1])
def test_tokens_are_scored_after_their_places(
    params: Any, monkeypatch: pytest.MonkeyPatch, logits_at_once: int
):
    """Two groups of one row; one place has several tokens, among them the likeliest."""
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", logits_at_once)
    model: Any = DECODER.build(EXAMPLE, platform="cpu")
    tokens_bt = np.random.default_rng(0).integers(290, size=(2, CONTEXT_LENGTH)).astype(np.int32)
    log_probs_btv = jax.nn.log_softmax(model.logits(params, tokens_bt))
    places_gn = np.array([[3, 40], [17, 0]], np.int32)
    after_gm = np.array([[0, 1, 1], [0, 0, 1]], np.int32)
    targets_gm = np.array([[5, 6, 7], [8, 9, 10]], np.int32)
    targets_gm[0, 1] = np.argmax(log_probs_btv[0, 40])
    found, likeliest = next_token_scores(
        model, params, jax.numpy.asarray(tokens_bt), None, places_gn, after_gm, targets_gm
    )
    for group in range(2):
        for i in range(3):
            place = places_gn[group, after_gm[group, i]]
            expected = log_probs_btv[group, place, targets_gm[group, i]]
            assert float(found[group, i]) == pytest.approx(float(expected), rel=1e-4)
    assert np.argwhere(np.asarray(likeliest)).tolist() == [[0, 1]]
