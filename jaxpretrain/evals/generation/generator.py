"""Text generation: continues many prompts at once, with a cache of keys and values.

The prompts of a batch are read in one go, then a loop on the devices draws token after token; the
host looks in only where a stop sequence may end a text. Prompts are sorted by length, and lengths
and numbers of rows come in few sizes, so that few programs are compiled.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.special import begin_ids
from jaxpretrain.data.token_files.tokenizer import encoder, end_id, read_tokenizer, vocabulary_size
from jaxpretrain.evals.generation.token_loop import Rows, Sampling, TokenLoop
from jaxpretrain.evals.scoring.sharing import round_up
from jaxpretrain.models.contract import LanguageModel, Model, Params
from jaxpretrain.parallel.mesh import Layout

_TOKENS_UNSEEN = 16
"""Tokens that are drawn before the host looks for stop sequences."""


@dataclass(frozen=True)
class Generated:
    """A continuation."""

    ids: list[int]
    """Its tokens: as many as it takes to write a stop sequence, or up to the end of the text."""
    text: str
    """The text of these tokens, before the stop sequence."""
    ended: Literal["length", "stop", "end", "context"]
    """The reason of its end: it is as long as was asked for, a stop sequence came, the model ended
    the text, or the context is full."""


class Generator:
    """Samples from a language model with the tokenizer of its data, `batch_size` texts at once.

    Texts end at `end_ids`; without any, at those that the model and the tokenizer name. Raises
    InputError where the model continues no text, or the tokenizer does not fit it.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        tokenizer_path: Path,
        *,
        end_ids: Sequence[int] = (),
        batch_size: int = 16,
    ) -> None:
        if not isinstance(model, LanguageModel):
            raise InputError("this model continues no text; set eval.samples=none")
        tokenizer_json = read_tokenizer(tokenizer_path)
        self.tokenizer = encoder(tokenizer_json, tokenizer_path)
        """The tokenizer of prompts and continuations."""
        self.begin_ids = begin_ids(tokenizer_json, tokenizer_path)
        """The tokens that every text begins with, as the documents of the training data did."""
        size, limit = vocabulary_size(tokenizer_json), model.input_limits()["tokens"]
        if size > limit:
            raise InputError(
                f"{tokenizer_path} has {size} tokens, the model's vocabulary only {limit}"
            )
        self._model = model
        self._layout = layout
        self._context = model.units_per_example()[1]
        self._batch_size = batch_size
        self._vocab_size = size
        ends = end_ids or {model.document_end, end_id(tokenizer_json)}
        self.end_ids = [number for number in ends if number is not None]
        """The tokens that end a text."""
        self._loops: dict[Sampling, TokenLoop] = {}

    def encode(self, prompt: str | Sequence[int]) -> Sequence[int]:
        """Returns the token ids of a prompt; InputError where it is empty or fills the context."""
        is_text = isinstance(prompt, str)
        ids = [*self.begin_ids, *self.tokenizer.encode(prompt).ids] if is_text else prompt
        if not ids:
            raise InputError("the prompt is empty: give at least one token of text")
        if len(ids) >= self._context:
            raise InputError(f"the prompt has {len(ids)} tokens, the context only {self._context}")
        return ids

    def __call__(
        self,
        params: Params,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        num_tokens: int,
        sampling: Sampling,
        stops: Sequence[str] = (),
    ) -> list[Generated]:
        """Returns the continuations of texts, or of token ids, of at most `num_tokens` each.

        A draw depends on the seed, the number of the prompt among `prompts` and the position alone.
        A text ends before the first of the `stops` that it writes. Raises as `encode`.
        """
        if num_tokens < 1:
            raise InputError(f"num_tokens is {num_tokens}: must be at least 1")
        if not all(stops):
            raise InputError("a stop sequence is empty")
        encoded = [self.encode(prompt) for prompt in prompts]
        by_length = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
        generated: dict[int, Generated] = {}
        for first in range(0, len(prompts), self._batch_size):
            numbers = by_length[first : first + self._batch_size]
            batch = {number: encoded[number] for number in numbers}
            generated |= self._continue(params, batch, num_tokens, sampling, stops)
        return [generated[number] for number in range(len(prompts))]

    def _continue(
        self,
        params: Params,
        prompts: Mapping[int, Sequence[int]],
        num_tokens: int,
        sampling: Sampling,
        stops: Sequence[str],
    ) -> dict[int, Generated]:
        """Continues one batch, by the numbers of its prompts."""
        loop, rows = self._loop(sampling), self._rows(prompts, num_tokens, sampling.seed)
        state = loop.begin(params, rows, self._round_up(rows.ends_b.max()))
        generated: dict[int, Generated] = {}
        while True:
            seen = jax.device_get((state.tokens_bs, state.places_b, state.done_b))
            tokens, places, done = map(np.array, seen)
            for row, (number, prompt) in enumerate(prompts.items()):
                ids = tokens[row, len(prompt) : places[row] + 1].tolist()
                text = generated.get(number) or self._finished(ids, done[row], num_tokens, stops)
                if text is not None:
                    generated[number] = text
                    done[row] = True
            if done.all():
                return generated
            num_steps = _TOKENS_UNSEEN if stops else num_tokens
            state = loop.go_on(params, rows, state, done, num_steps)

    def _finished(
        self, ids: list[int], is_done: bool, num_tokens: int, stops: Sequence[str]
    ) -> Generated | None:
        """Returns a continuation that has ended; None while it goes on."""
        is_ended = ids[-1] in self.end_ids
        ids = ids[:-1] if is_ended else ids

        def before_stop(num_tokens: int) -> str | None:
            text = self.tokenizer.decode(ids[:num_tokens])
            found = [text.index(stop) for stop in stops if stop in text]
            return text[: min(found)] if found else None

        if before_stop(len(ids)) is not None:
            # The fewest tokens that write one, so that it does not matter when this is looked at.
            fewest = bisect_left(range(len(ids)), True, key=lambda n: before_stop(n) is not None)
            return Generated(ids[:fewest], before_stop(fewest) or "", "stop")
        if not is_done:
            return None
        full = "length" if len(ids) == num_tokens else "context"
        return Generated(ids, self.tokenizer.decode(ids), "end" if is_ended else full)

    def _rows(self, prompts: Mapping[int, Sequence[int]], num_tokens: int, seed: int) -> Rows:
        num_rows = 1 << (len(prompts) - 1).bit_length()
        num_rows = -(-num_rows // self._layout.num_data) * self._layout.num_data
        lengths, ends = np.ones((2, num_rows), np.int32)  # rows of padding are done at once
        numbers = np.zeros(num_rows, np.int32)
        lengths[: len(prompts)] = [len(prompt) for prompt in prompts.values()]
        ends[: len(prompts)] = np.minimum(lengths[: len(prompts)] + num_tokens, self._context)
        numbers[: len(prompts)] = list(prompts)
        tokens = np.zeros((num_rows, self._round_up(lengths.max())), np.int32)
        for row, prompt in enumerate(prompts.values()):
            tokens[row, : len(prompt)] = prompt
        return Rows(tokens, lengths, ends, numbers, np.uint32(seed))

    def _round_up(self, length: int) -> int:
        return min(round_up(length), self._context)

    def _loop(self, sampling: Sampling) -> TokenLoop:
        key = replace(sampling, seed=0)  # the seed is an input of the program
        if key not in self._loops:
            parts = (self._model, self._layout, key, self._vocab_size, self.end_ids)
            self._loops[key] = TokenLoop(*parts)
        return self._loops[key]
