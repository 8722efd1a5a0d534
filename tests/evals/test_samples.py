import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.contract import Setting
from jaxpretrain.evals.generation.token_loop import Sampling
from jaxpretrain.evals.samples import (
    Continuations,
    Continuer,
    Reconstructions,
    grid,
    held_out_prompts,
    reduced,
)
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


@dataclass(frozen=True)
class Images:
    name: str = "noise"
    num_examples: int = 21

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images = [np.random.default_rng(i).integers(256, size=(8, 8, 3)) for i in indices]
        return {"images": np.stack(images).astype(np.uint8)}

    def target_bytes(self, batch: Any) -> None:
        return None


@pytest.fixture
def paint(make_mae: Any):
    """(devices, fields of `Reconstructions`) -> the picture."""

    def picture(num_devices: int, **fields: Any) -> np.ndarray:
        setting, params = make_mae(num_devices, eval_sets=[Images()])
        painter = Reconstructions(**fields).build(setting)
        painter.compile()
        (found,) = painter(params).images.values()
        return found

    return picture


def test_the_first_column_shows_images_from_all_over_the_set(paint: Any):
    picture = paint(1, num_images=3)
    assert picture.shape == (3 * 10 - 2, 3 * 10 - 2, 3) and picture.dtype == np.uint8
    expected = Images().batch(np.array([0, 10, 20]))["images"]
    for number, image in enumerate(expected):
        shown = picture[10 * number : 10 * number + 8, :8].astype(int)
        assert np.abs(shown - image).max() <= 1


def test_the_second_column_hides_what_the_model_does_not_see_and_the_third_paints_it(paint: Any):
    first, second, third = (paint(1, num_images=1)[:, x : x + 8] for x in (0, 10, 20))
    seen = (np.abs(second.astype(int) - first) <= 1).all(axis=2)
    assert seen.reshape(2, 4, 2, 4).all(axis=(1, 3)).sum() == 1  # a quarter of four patches
    assert (np.abs(third.astype(int) - first)[seen] <= 1).all()
    assert (third != second)[~seen].any()


def test_devices_do_not_change_thepaint(paint: Any):
    one, eight = (paint(n, num_images=3).astype(int) for n in (1, 8))
    assert np.abs(one - eight).max() <= 1


def test_large_images_are_shown_smaller_by_their_means():
    image = np.random.default_rng(0).random((600, 400, 3), np.float32)
    small = reduced(image)
    assert small.shape == (200, 133, 3)
    np.testing.assert_allclose(small[3, 5], image[9:12, 15:18].mean(axis=(0, 1)), rtol=1e-5)
    assert reduced(image[:256, :256]) is not None and reduced(image[:256, :256]).shape[0] == 256


def test_a_grid_has_white_between_images():
    black = np.zeros((2, 3, 3), np.float32)
    picture = grid([[black, black], [black, black]])
    assert picture.shape == (6, 8, 3)
    assert (picture[2:4] == 255).all() and (picture[:, 3:5] == 255).all() and picture.min() == 0


def test_what_cannot_be_shown_is_refused(make_mae: Any):
    setting, _ = make_mae()
    with pytest.raises(InputError, match="no images are held out"):
        Reconstructions().build(setting)
    with pytest.raises(InputError, match="paints no images"):
        Reconstructions().build(replace(setting, model=object()))
