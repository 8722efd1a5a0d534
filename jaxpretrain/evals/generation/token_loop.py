"""The loop that draws tokens, on the devices: each is chosen by its logits.

Shapes: b rows, t positions of prompts, s positions of whole texts, d model width, v vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.contract import Cache, LanguageModel, Params
from jaxpretrain.parallel.mesh import Layout


@dataclass(frozen=True)
class Sampling:
    """The distribution of a token: a temperature, then the likeliest k, then a nucleus."""

    temperature: float = 0.8
    """Logits are divided by it; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Number of tokens that may be drawn, the likeliest; none: all."""
    top_p: float | None = None
    """Probability of the smallest set of tokens that may be drawn; none: all."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"temperature is {self.temperature}: must not be negative")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}: must be at least 0 and below 2**32")

    def choose(
        self, logits_bv: jax.Array, seed: jax.Array, numbers_b: jax.Array, positions_b: jax.Array
    ) -> jax.Array:
        """Returns the next token of each row, int32 [b].

        A draw depends on the seed, the number of the text and the position alone, so it is the
        same in every batch. `seed` is given apart, so that other seeds need no other program.
        """
        if self.temperature == 0:
            return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
        logits_bv = self._keep(logits_bv / self.temperature)

        def draw(logits_v: jax.Array, number: jax.Array, position: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), position)
            return jax.random.categorical(key, logits_v)

        return jax.vmap(draw)(logits_bv, numbers_b, positions_b).astype(jnp.int32)

    def _keep(self, logits_bv: jax.Array) -> jax.Array:
        """Returns the logits of tokens that may be drawn; -inf elsewhere."""
        if self.top_k is not None:
            top_bk, _ = jax.lax.top_k(logits_bv, min(self.top_k, logits_bv.shape[-1]))
            logits_bv = jnp.where(logits_bv < top_bk[:, -1:], -jnp.inf, logits_bv)
        if self.top_p is not None:
            falling_bv = jnp.sort(logits_bv, axis=-1, descending=True)
            probs_bv = jax.nn.softmax(falling_bv, axis=-1)
            likelier_bv = jnp.cumsum(probs_bv, axis=-1) - probs_bv  # the sum of those before
            least_b1 = jnp.min(
                jnp.where(likelier_bv < self.top_p, falling_bv, jnp.inf), axis=-1, keepdims=True
            )
            logits_bv = jnp.where(logits_bv < least_b1, -jnp.inf, logits_bv)
        return logits_bv


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
