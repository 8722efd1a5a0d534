"""Fixed prompts that a language model continues at each evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Positive
from jaxpretrain.data.token_files.tokenizer import encoder, read_tokenizer
from jaxpretrain.evals.contract import Evaluation, Evaluator, Results, Setting
from jaxpretrain.evals.generation.generator import Generator
from jaxpretrain.evals.generation.token_loop import Sampling
from jaxpretrain.models.contract import Params

_PROMPT_TOKENS = 8
"""The largest number of tokens of a held-out document that make a prompt."""


@dataclass(frozen=True)
class Continuations(Evaluation):
    """Texts that the model continues at each evaluation, logged as samples."""

    prompts: tuple[str, ...] | Literal["held_out"] = "held_out"
    """Texts to continue. held_out: the beginning of the first document of each validation set, or
    nothing where the data has no tokenizer."""
    num_tokens: Annotated[int, Positive] = 48
    """Largest number of tokens of each continuation."""

    def build(self, setting: Setting) -> "Continuer":
        """Returns the evaluator; raises InputError without a tokenizer, or for a bad prompt."""
        prompts = held_out_prompts(setting) if self.prompts == "held_out" else self.prompts
        return Continuer(setting, prompts, self.num_tokens)


class Continuer(Evaluator):
    """Continues fixed prompts with a fixed seed, so that runs compare."""

    def __init__(self, setting: Setting, prompts: Sequence[str], num_tokens: int) -> None:
        self._prompts = prompts
        self._num_tokens = num_tokens
        self._generator = None
        if prompts:
            if setting.tokenizer_path is None:
                raise InputError(
                    "eval.samples.prompts need a tokenizer, and the data has none (no manifest)"
                )
            parts = setting.model, setting.layout, setting.tokenizer_path
            self._generator = Generator(*parts, end_ids=setting.end_ids)
            for prompt in prompts:
                self._generator.encode(prompt)  # refused now, not at the first evaluation

    def __call__(self, params: Params) -> Results:
        """Returns `samples/<i>`: the prompt and its continuation."""
        if self._generator is None:
            return Results()
        generated = self._generator(params, self._prompts, self._num_tokens, Sampling())
        pairs = zip(self._prompts, generated, strict=True)
        return Results(texts={f"samples/{i}": f"{a}|{b.text}" for i, (a, b) in enumerate(pairs)})


def held_out_prompts(setting: Setting) -> list[str]:
    """Returns the words that each validation set begins with; [] without a tokenizer."""
    if setting.tokenizer_path is None:
        return []
    tokenizer = encoder(read_tokenizer(setting.tokenizer_path))
    prompts = []
    for eval_set in setting.eval_sets:
        tokens = eval_set.batch(np.arange(1))["tokens"][0]
        # Files begin with a document; a quarter of the context leaves room for what follows.
        num_tokens = max(1, min(_PROMPT_TOKENS, len(tokens) // 4))
        ends = np.flatnonzero(np.isin(tokens, setting.end_ids))
        document = tokens[: ends[0]] if len(ends) else tokens
        text = tokenizer.decode(document[:num_tokens].tolist()).rstrip("\ufffd")
        whole_words = text.rpartition(" ")[0] if len(document) > num_tokens else text
        prompts.append(whole_words if whole_words.strip() else text)
    return [prompt for prompt in prompts if prompt]
