"""The loop that draws tokens, on the devices.

Shapes: b rows, t positions of prompts, s positions of whole texts, d model width, v vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.evals.generation.sampling import Sampling
from jaxpretrain.models.contract import Cache, LanguageModel, Params
from jaxpretrain.parallel.mesh import Layout


class Rows(NamedTuple):
    """Prompts to continue: int32 arrays, the same in all processes."""

    prompts_bt: Any
    """Tokens of the prompts, padded behind."""
    lengths_b: Any
    """Number of tokens of each prompt, at least one."""
    ends_b: Any
    """Largest number of tokens of each text with its prompt; where there is no room for more, one
    is drawn all the same, and the row is done."""
    numbers_b: Any
    """Numbers that tell the draws of rows apart."""
    seed: Any
    """Seed of all draws, uint32."""


class State(NamedTuple):
    """The texts so far."""

    cache: Cache
    """The cache of all tokens but the latest of each row."""
    tokens_bs: jax.Array
    places_b: jax.Array
    """Places of the latest tokens."""
    done_b: jax.Array


class TokenLoop:
    """Reads prompts and draws what follows; compiled once for each shape.

    The seed of `sampling` is not used. Tokens below `vocab_size` may be drawn: rows of padding
    stand for no text. `end_ids` end a text.
    """

    def __init__(
        self,
        model: LanguageModel,
        layout: Layout,
        sampling: Sampling,
        vocab_size: int,
        end_ids: Sequence[int],
    ) -> None:
        self._model = model
        self._sampling = sampling
        self._vocab_size = vocab_size
        self._end_ids = np.array(end_ids, np.int32)
        # Every process reads the texts so far; the cache stays divided.
        read: Any = layout.replicated
        shardings = State(None, read, read, read)
        self.begin = jax.jit(self._begin, static_argnames="length", out_shardings=shardings)
        self.go_on = jax.jit(self._go_on, donate_argnames="state", out_shardings=shardings)

    def _begin(self, params: Params, rows: Rows, length: int) -> State:
        """Reads prompts and draws the first token of each; texts have room for `length` tokens."""
        x_btd, cache = self._model.prefill(params, rows.prompts_bt, length)
        places_b = rows.lengths_b - 1
        x_b1d = jnp.take_along_axis(x_btd, places_b[:, None, None], axis=1)
        num_rows, num_tokens = rows.prompts_bt.shape
        tokens_bs = jnp.pad(rows.prompts_bt, ((0, 0), (0, length - num_tokens)))
        state = State(cache, tokens_bs, places_b, jnp.zeros(num_rows, bool))
        return self._append(params, rows, state, x_b1d)

    def _go_on(
        self, params: Params, rows: Rows, state: State, stopped_b: jax.Array, num_steps: jax.Array
    ) -> State:
        """Draws at most `num_steps` tokens for each row that is not done.

        Rows that are `stopped_b` are done from now on. The memory of the old state is used again.
        """

        def goes_on(carry: tuple[jax.Array, State]) -> jax.Array:
            step, state = carry
            return (step < num_steps) & ~jnp.all(state.done_b)

        def draw(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
            step, state = carry
            latest_b1 = _at(state.tokens_bs, state.places_b)
            x_b1d, cache = self._model.extend(params, latest_b1, state.cache, state.places_b)
            return step + 1, self._append(params, rows, state._replace(cache=cache), x_b1d)

        state = state._replace(done_b=state.done_b | stopped_b)
        return jax.lax.while_loop(goes_on, draw, (jnp.int32(0), state))[1]

    def _append(self, params: Params, rows: Rows, state: State, x_b1d: jax.Array) -> State:
        """Chooses a token for each row by the hidden state of its latest; done rows stay."""
        kernel_dv = self._model.output_kernel(params)
        logits_bv = jnp.einsum("bod,dv->bv", x_b1d, kernel_dv, preferred_element_type=jnp.float32)
        places_b = jnp.where(state.done_b, state.places_b, state.places_b + 1)
        chosen_b = self._sampling.choose(
            logits_bv[:, : self._vocab_size], rows.seed, rows.numbers_b, places_b
        )
        token_b = jnp.where(state.done_b, _at(state.tokens_bs, places_b)[:, 0], chosen_b)
        tokens_bs = state.tokens_bs.at[jnp.arange(len(places_b)), places_b].set(token_b)
        is_end_b = jnp.isin(token_b, self._end_ids)
        done_b = state.done_b | is_end_b | (places_b + 1 >= rows.ends_b)
        return State(state.cache, tokens_bs, places_b, done_b)


def _at(tokens_bs: jax.Array, places_b: jax.Array) -> jax.Array:
    """Returns the token [b, 1] at a place of each row."""
    return jnp.take_along_axis(tokens_bs, places_b[:, None], axis=1)
