from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.text.text import TextData
from jaxpretrain.evals.linear_probe import LinearProbe, classify, draw_shots
from jaxpretrain.models.olmo.decoder import Decoder


@dataclass(frozen=True)
class Images:
    """Images of three brightnesses; the brightness is the class."""

    num_examples: int
    classes: tuple[str, ...] = ("dark", "grey", "bright")

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        level = 60 + 60 * self.labels(indices)[:, None, None, None]
        noise = [np.random.default_rng(i).integers(20, size=(8, 8, 3)) for i in indices]
        return {"images": (level + np.stack(noise)).astype(np.uint8)}

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return (indices % 3).astype(np.int32)


class Source:
    eval_name = "levels"

    def example_spec(self) -> Any:
        return {"images": ((8, 8, 3), "uint8")}

    def open_labelled(self, split: str) -> Images:
        return Images({"train": 30, "validation": 25}[split])


def test_ridge_regression_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 6)
    train_nd = random.normal(size=(24, 50)) * random.uniform(0.1, 9, 50) + labels[:, None] * 0.4
    test_md = random.normal(size=(70, 50)) * 3 + 1
    train_nd[:, 3] = 5.0  # a feature that never changes
    mean, deviation = train_nd.mean(axis=0), train_nd.std(axis=0)
    deviation[3] = 1.0
    targets = 2.0 * np.eye(4)[labels] - 1.0
    ridge = linear_model.Ridge(alpha=2.5).fit((train_nd - mean) / deviation, targets)
    expected = ridge.predict((test_md - mean) / deviation).argmax(axis=1)
    np.testing.assert_array_equal(classify(train_nd, labels, test_md, 2.5), expected)


def test_shots_are_of_their_class_and_never_twice():
    labels = np.array([0, 1, 1, 0, 1, 0, 0])
    drawn = draw_shots(labels, ("a", "b"), 3, seed=1)
    assert drawn.shape == (2, 3)
    for label, indices in enumerate(drawn):
        assert set(labels[indices]) == {label} and len(set(indices)) == 3
    assert not np.array_equal(drawn, draw_shots(labels, ("a", "b"), 3, seed=2))
    with pytest.raises(InputError, match="the class b has 3 images to train on, not 4; set"):
        draw_shots(labels, ("a", "b"), 4, seed=0)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_what_features_tell_apart_is_found(make_mae: Any, num_devices: int):
    """Brightness shows even in random features; the held-out images number no whole batches."""
    setting, params = make_mae(num_devices, source=Source())
    probe = LinearProbe(shots=(1, 4), num_seeds=2).build(setting)
    probe.compile()
    scalars = probe(params).scalars
    assert scalars["eval/levels/probe_4shot"] == 1.0
    assert scalars["eval/levels/probe_4shot_stderr"] == 0.0
    assert 0.5 < scalars["eval/levels/probe_1shot_random_init"] <= 1.0
    assert scalars == probe(params).scalars
    assert len(scalars) == 8


def test_one_draw_has_no_standard_error(make_mae: Any):
    setting, params = make_mae(source=Source())
    probe = LinearProbe(shots=(2,), num_seeds=1, features="class").build(setting)
    probe.compile()
    scalars = probe(params).scalars
    assert list(scalars) == ["eval/levels/probe_2shot", "eval/levels/probe_2shot_random_init"]


def test_what_cannot_be_probed_is_refused(make_mae: Any):
    setting, _ = make_mae(source=Source())
    text = replace(setting, source=TextData(seq_len=8))
    with pytest.raises(InputError, match="data are no images"):
        LinearProbe().build(text)
    decoder = Decoder(vocab_size=8, embedding_rows=8, d_model=8, num_layers=1, num_heads=2, d_ff=8)
    model = decoder.build({"tokens": ((8,), "int32")}, platform="cpu")
    with pytest.raises(InputError, match="no features of images"):
        LinearProbe().build(replace(text, model=model))
    with pytest.raises(InputError, match="shots is empty"):
        LinearProbe(shots=()).build(setting)
