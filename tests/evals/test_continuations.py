import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.continuations import Continuations, Continuer, held_out_prompts
from jaxpretrain.evals.contract import Setting
from jaxpretrain.evals.generation.token_loop import Sampling
from tests.evals.generation.models import SEQ_LEN, make_layout, make_model


def _setting(tokenizer_path: Path | None, eos_id: int | None = None) -> Setting:
    source: Any = None
    return Setting(
        make_model(),
        make_layout(),
        params={},
        source=source,
        eval_sets=[],
        batch_size=1,
        tokenizer_path=tokenizer_path,
        end_ids=() if eos_id is None else (eos_id,),
    )


def test_samples_are_the_same_at_each_evaluation(generator, text_params, tokenizer_path: Path):
    samples = Continuer(_setting(tokenizer_path), ["the", "union"], num_tokens=5)
    results = samples(text_params)
    assert results == samples(text_params) and not results.scalars
    assert list(results.texts) == ["samples/0", "samples/1"]
    text = generator(text_params, ["the", "union"], 5, Sampling())[1].text
    assert results.texts["samples/1"] == f"union|{text}"


def test_only_the_end_of_the_datas_documents_ends_a_sample(
    generator, text_tokenizer, text_params, tokenizer_path: Path
):
    drawn = generator(text_params, ["the"], 10, Sampling())[0].ids
    samples = Continuer(_setting(tokenizer_path, eos_id=drawn[3]), ["the"], num_tokens=10)
    before = drawn[: drawn.index(drawn[3])]
    assert samples(text_params).texts["samples/0"] == f"the|{text_tokenizer.decode(before)}"


class HeldOutSet:
    """A validation set of one sequence."""

    name = "held"
    num_examples = 1

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"tokens": np.array([self._ids] * len(indices), np.int32)}


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("the union of the states of the union " * 2, "the union of the"),
        ("the union<end>of the states " * 3, "the union"),
        ("Überqueren der Straße verboten", "Überq"),  # a token a byte, and two for its first letter
        ("x漢字漢字漢字漢字", "x漢"),  # two of the three bytes of the next letter are left out
    ],
)
def test_prompts_come_from_the_held_out_documents(
    text_tokenizer, tokenizer_path: Path, text: str, prompt: str
):
    """Their first words, within a quarter of the context: six tokens."""
    end = text_tokenizer.token_to_id("<|end|>")
    ids = [i for part in text.split("<end>") for i in [*text_tokenizer.encode(part).ids, end]]
    sets: list[Any] = [HeldOutSet(ids[:SEQ_LEN])]
    setting = dataclasses.replace(_setting(tokenizer_path, eos_id=end), eval_sets=sets)
    assert held_out_prompts(setting) == [prompt]


def test_without_a_tokenizer_or_held_out_documents_there_is_nothing_to_begin_with(
    tokenizer_path: Path,
):
    sets: list[Any] = [HeldOutSet([1] * SEQ_LEN)]
    for setting in (_setting(tokenizer_path), dataclasses.replace(_setting(None), eval_sets=sets)):
        assert held_out_prompts(setting) == []
        assert not Continuations().build(setting)(params={}).texts


def test_samples_need_a_tokenizer():
    with pytest.raises(InputError, match=r"eval\.samples\.prompts need a tokenizer"):
        Continuer(_setting(None), ["the"], num_tokens=5)
