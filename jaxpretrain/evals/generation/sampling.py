"""The choice of the next token from its logits.

Shapes: b batch, v vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpretrain.config.errors import InputError


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
