from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.evals.scoring import next_tokens
from jaxpretrain.evals.scoring.next_tokens import next_token_scores
from tests.evals.conftest import CONTEXT, DECODER, EXAMPLE


@pytest.mark.parametrize("logits_at_once", [512, 1])
def test_tokens_are_scored_after_their_places(
    params: Any, monkeypatch: pytest.MonkeyPatch, logits_at_once: int
):
    """Two groups of one row; one place has several tokens, among them the likeliest."""
    monkeypatch.setattr(next_tokens, "_LOGITS_AT_ONCE", logits_at_once)
    model: Any = DECODER.build(EXAMPLE, platform="cpu")
    tokens_bt = np.random.default_rng(0).integers(290, size=(2, CONTEXT)).astype(np.int32)
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
