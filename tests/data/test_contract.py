from dataclasses import dataclass

import numpy as np

from jaxpretrain.data.contract import (
    Batch,
    DataConfig,
    EvalSet,
    LabelledSource,
    Spec,
    TrainingData,
    fingerprint,
)
from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.text.text import TextData


@dataclass(frozen=True)
class Numbers(DataConfig):
    """The least that a source has to say."""

    def example_spec(self) -> Spec:
        return {"numbers": ((2,), "int32")}

    def units_per_example(self) -> tuple[str, int]:
        return "numbers", 2

    def open(self, *, seed: int, limits) -> "TrainingNumbers":
        return TrainingNumbers(num_examples=4, fingerprint=fingerprint([seed]))

    def open_evals(self, *, limits) -> list[EvalSet]:
        return [HeldOutNumbers(name="held", num_examples=3)]


class TrainingNumbers(TrainingData):
    def batch(self, samples: np.ndarray) -> Batch:
        return {"numbers": np.stack([samples, samples], axis=1)}

    def describe(self) -> str:
        return "numbers"


class HeldOutNumbers(EvalSet):
    def batch(self, indices: np.ndarray) -> Batch:
        return {"numbers": np.stack([indices, indices], axis=1)}


def test_a_config_without_more_has_one_unnamed_source_and_nothing_beside_the_examples():
    config = Numbers()
    assert (config.extra_spec(), config.source_names()) == ({}, ())
    assert (config.num_examples, config.changes_over_time) == (None, False)
    assert config.unhashed() is config


def test_training_data_without_more_counts_epochs_and_has_no_text_and_no_warnings():
    data = Numbers().open(seed=1, limits={})
    assert data.epochs(6) == {"epochs": 1.5}
    assert (data.report(), data.notes, data.num_workers) == ([], (), 0)
    assert (data.tokenizer_path, data.eos_id) == (None, None)


def test_an_evaluation_set_without_more_knows_no_bytes():
    (held_out,) = Numbers().open_evals(limits={})
    batch = held_out.batch(np.arange(2))
    assert held_out.target_bytes(batch) is None and held_out.notes == ()


def test_a_fingerprint_changes_with_every_part():
    contents = [[1], [1, 2], [[1, 2]], ["1"], [None]]
    assert len({fingerprint(content) for content in contents}) == len(contents)
    assert fingerprint([1, "a"]) == fingerprint([1, "a"]) and len(fingerprint([])) == 16


def test_images_are_labelled_and_text_is_not():
    assert isinstance(ImageData(), LabelledSource)
    assert not isinstance(TextData(), LabelledSource)
