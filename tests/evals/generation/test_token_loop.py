from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.generation.token_loop import Rows, Sampling, TokenLoop
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


PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.3, 0.15])


def draw(sampling: Sampling, num_draws: int = 2000) -> np.ndarray:
    """Frequencies of the tokens, from texts of their own."""
    logits = jnp.tile(jnp.log(jnp.float32(PROBABILITIES)), (num_draws, 1))
    numbers, positions = jnp.arange(num_draws), jnp.full(num_draws, 3)
    choose = jax.jit(sampling.choose)
    tokens = choose(logits, np.uint32(sampling.seed), numbers, positions)
    return np.bincount(tokens, minlength=len(PROBABILITIES)) / num_draws


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_k=2), [1, 3]),
        (Sampling(1.0, top_k=99), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_p=0.39), [1]),
        (Sampling(1.0, top_p=0.41), [1, 3]),
        (Sampling(1.0, top_p=0.8), [1, 3, 4]),
        (Sampling(1.0, top_p=1.0), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_k=2, top_p=0.56), [1]),  # of the two that are left, it has 4 / 7
        (Sampling(1.0, top_k=2, top_p=0.58), [1, 3]),
        (Sampling(0.0), [1]),
        (Sampling(1e-4), [1]),
    ],
    ids=str,
)
def test_draws_follow_what_is_left_of_the_distribution(sampling: Sampling, kept: list[int]):
    expected = np.zeros(len(PROBABILITIES))
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    np.testing.assert_allclose(draw(sampling), expected, atol=0.05)
    assert np.all(draw(sampling)[expected == 0] == 0)


def test_temperature_flattens_before_anything_is_left_out():
    flat = PROBABILITIES**0.5 / np.sum(PROBABILITIES**0.5)
    np.testing.assert_allclose(draw(Sampling(2.0)), flat, atol=0.05)
    # At temperature 1 three tokens make up 0.8, now it takes four.
    assert np.count_nonzero(draw(Sampling(2.0, top_p=0.8))) == 4


def test_a_draw_depends_on_seed_text_and_position():
    logits = jnp.zeros((6, 1000))
    numbers, positions = jnp.array([0, 1, 0, 1, 2, 0]), jnp.array([4, 4, 5, 5, 9, 4])
    choose = jax.jit(Sampling(1.0).choose)
    tokens = np.asarray(choose(logits, np.uint32(7), numbers, positions))
    assert len(set(tokens[:5])) == 5 and tokens[5] == tokens[0]
    backwards = choose(logits, np.uint32(7), numbers[::-1], positions[::-1])
    np.testing.assert_array_equal(backwards[::-1], tokens)
    assert np.all(choose(logits, np.uint32(8), numbers, positions) != tokens)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1: must not be negative"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0: must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0: must be above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_numbers_that_make_no_sense_are_one_line(numbers: dict, message: str):
    with pytest.raises(InputError, match=message):
        Sampling(**numbers)
