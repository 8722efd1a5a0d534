"""Text generation: continues a prompt, one token at a time.

The whole window is computed again for each token; its length is fixed, so one compilation serves.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.contract import Results, Setting
from jaxpretrain.models.contract import LanguageModel, Model


class Generator:
    """Samples from a language model with the tokenizer of its data.

    Args:
      model: its sequence length is the longest context.
      tokenizer_path: a `tokenizer.json`.

    Raises:
      InputError: the model continues no text, or the tokenizer does not fit it.
    """

    def __init__(self, model: Model, tokenizer_path: Path) -> None:
        if not isinstance(model, LanguageModel):
            raise InputError("this model continues no text; leave eval.prompts empty")
        from tokenizers import Tokenizer  # imported here: runs without prompts do not need it

        self._tokenizer = Tokenizer.from_file(str(tokenizer_path))
        size = self._tokenizer.get_vocab_size()
        limit = model.input_limits()["tokens"]
        if size > limit:
            raise InputError(
                f"{tokenizer_path} has {size} tokens, the model's vocabulary only {limit}"
            )
        self._length = model.units_per_example()[1]
        self._size = size
        self._next = self._compile(model)

    def __call__(
        self, params: Any, prompt: str, num_tokens: int, *, temperature: float, seed: int
    ) -> str:
        """The continuation of `prompt`, without the prompt; temperature 0 takes the likeliest.

        Raises:
          InputError: the prompt has no tokens or leaves no room in the context.
        """
        ids = self.encode(prompt)
        window = np.zeros((1, self._length), np.int32)
        window[0, : len(ids)] = ids
        stop = min(self._length, len(ids) + num_tokens)
        for position in range(len(ids), stop):
            token = self._next(
                params, window, np.int32(position), np.float32(temperature), np.int32(seed)
            )
            window[0, position] = int(token)
        return self._tokenizer.decode(window[0, len(ids) : stop].tolist())

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt that leaves room in the context.

        Raises:
          InputError: it has no tokens or leaves no room.
        """
        ids = self._tokenizer.encode(prompt).ids
        if not ids:
            raise InputError("the prompt is empty: give at least one token of text")
        if len(ids) >= self._length:
            raise InputError(f"the prompt has {len(ids)} tokens, the context only {self._length}")
        return ids

    def _compile(self, model: LanguageModel) -> Callable[..., jax.Array]:
        size = self._size

        # All but the parameters are numbers on the host, the same in all processes: an array made
        # outside would lie on one device of its own process.
        def next_token(params, tokens_bt, position, temperature, seed):
            logits_v = model.logits(params, tokens_bt)[0, position - 1]
            logits_v = logits_v[:size]  # no token stands for the padding rows
            key = jax.random.fold_in(jax.random.key(seed), position)
            drawn = jax.random.categorical(key, logits_v / jnp.maximum(temperature, 1e-6))
            return jnp.where(temperature > 0, drawn, jnp.argmax(logits_v))

        return jax.jit(next_token)


class Samples:
    """An evaluator that continues fixed prompts with a fixed seed, so that runs compare."""

    def __init__(self, setting: Setting, prompts: Sequence[str], num_tokens: int) -> None:
        if setting.tokenizer_path is None:
            raise InputError("eval.prompts need a tokenizer, and the data has none (no manifest)")
        generator = Generator(setting.model, setting.tokenizer_path)
        for prompt in prompts:
            generator.encode(prompt)  # refused now, not at the first evaluation
        self._generator = generator
        self._prompts = prompts
        self._num_tokens = num_tokens

    def __call__(self, params: Any) -> Results:
        """`samples/<i>`: the prompt and its continuation."""
        texts = {}
        for i, prompt in enumerate(self._prompts):
            text = self._generator(params, prompt, self._num_tokens, temperature=0.8, seed=i)
            texts[f"samples/{i}"] = f"{prompt}|{text}"
        return Results(texts=texts)
