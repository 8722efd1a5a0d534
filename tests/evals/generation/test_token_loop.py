from typing import Any

import jax
import numpy as np

from jaxpretrain.evals.generation.sampling import Sampling
from jaxpretrain.evals.generation.token_loop import Rows, TokenLoop
from tests.evals.generation.models import VOCAB_SIZE, make_layout, make_model, read_anew

LENGTHS = np.array([4, 2], np.int32)
PROMPTS = np.array([[9, 8, 7, 6], [5, 4, 0, 0]], np.int32)


def test_rows_are_drawn_up_to_their_ends_and_stay_where_they_are_stopped():
    model: Any = make_model()
    params = jax.jit(model.init)(jax.random.key(3))
    loop = TokenLoop(model, make_layout(), Sampling(temperature=0), VOCAB_SIZE, [])
    ends = LENGTHS + np.array([6, 3], np.int32)
    rows = Rows(PROMPTS, LENGTHS, ends, np.arange(2, dtype=np.int32), np.uint32(0))
    state = loop.begin(params, rows, 16)
    assert state.places_b.tolist() == LENGTHS.tolist()
    state = loop.go_on(params, rows, state, np.zeros(2, bool), 1)
    assert state.places_b.tolist() == (LENGTHS + 1).tolist()
    state = loop.go_on(params, rows, state, np.array([True, False]), 100)
    assert state.places_b.tolist() == [LENGTHS[0] + 1, ends[1] - 1]
    assert np.asarray(state.done_b).all()
    for row, (length, drawn) in enumerate(zip(LENGTHS, (2, 3), strict=True)):
        prompt = PROMPTS[row, :length].tolist()
        found = np.asarray(state.tokens_bs)[row, length : length + drawn].tolist()
        assert found == read_anew(model, params, prompt, drawn)
