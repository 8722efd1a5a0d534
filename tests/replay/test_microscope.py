from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.optim.layers import global_norm
from jaxpretrain.replay.microscope import Microscope, View
from jaxpretrain.replay.stretch import Step, open_stretch
from jaxpretrain.train.step import step_key


def looked_at(workdir: Path, steps: str, num_examples: int = 2) -> list[Step[View]]:
    stretch = open_stretch(workdir, steps)
    return [*stretch.run(stretch.restore(), Microscope(stretch, num_examples))]


@pytest.mark.parametrize("which", ["run", "plain"])
def test_the_losses_of_tokens_and_examples_add_up_to_that_of_the_step(
    which: str, request: pytest.FixtureRequest
):
    for step in looked_at(request.getfixturevalue(which), "5-7"):  # over the end of a stage
        view, loss = step.seen, step.metrics["loss"]
        assert view is not None
        weight = sum(one.weight for one in view.examples)
        assert weight == step.metrics["weight"]
        of_examples = sum(one.loss * one.weight for one in view.examples) / weight
        assert of_examples == pytest.approx(loss, rel=1e-5)
        assert view.losses.sum() / weight == pytest.approx(loss, rel=1e-5)
        assert view.losses.shape == view.rows["tokens"].shape and (view.losses[:, 0] == 0).all()
        assert [one.row for one in view.documents] == [*range(len(view.examples))]


def test_rows_have_their_places_and_pieces_of_a_sample_share_theirs(run: Path, plain: Path):
    *_, step = looked_at(plain, "9-9")
    assert step.seen is not None
    for one in step.seen.examples:
        name, rest = one.place.name.split(", tokens ")
        start = int(rest.split(" to ")[0].replace(",", ""))
        root = open_stretch(plain, "9-9").data.corpus.root  # pyright: ignore
        tokens = np.fromfile(root / name, "<u2")[start : start + 64]
        assert np.array_equal(tokens, step.seen.rows["tokens"][one.row])
        assert one.place.group == name
    *_, step = looked_at(run, "5-5")  # of sequences half as long
    assert step.seen is not None
    samples = [one.place.sample for one in step.seen.examples]
    assert samples == sorted([*set(samples)] * 2)


def test_the_gradient_of_an_example_is_its_share_of_that_of_the_step(plain: Path):
    stretch = open_stretch(plain, "6-6")
    *_, step = stretch.run(stretch.restore(), Microscope(stretch, 2))
    known = [one for one in step.seen.examples if one.gradient is not None]  # pyright: ignore
    assert 2 <= len(known) <= 4
    highest = max(step.seen.examples, key=lambda one: one.loss)  # pyright: ignore
    assert highest in known
    state, model = stretch.restore(), stretch.stages.program.model
    stage = stretch.stages.at(5)
    batch = stage.program.layout.put(stretch.stages.read(stretch.data, 5), 8)
    state, _ = stage.train_step(state, batch)
    rows = stretch.stages.read(stretch.data, 6)["tokens"]

    def norm(row: int) -> float:
        alone = {"tokens": rows[row : row + 1]}
        key = step_key(state.rng, state.step)
        gradient = jax.jit(jax.grad(lambda p: model.loss(p, alone, key)[0]))(state.params)
        return float(global_norm(gradient)) / step.metrics["weight"]

    for one in known:
        assert one.gradient == pytest.approx(norm(one.row), rel=1e-4)
        assert one.layer


def test_images_have_the_errors_of_their_patches_and_pictures(images: Path):
    *_, step = looked_at(images, "5-6", num_examples=1)
    view = step.seen
    assert view is not None
    assert view.losses.shape == (8, 16) and ((view.losses > 0).sum(axis=1) == 12).all()
    assert view.losses.sum() / (8 * 12) == pytest.approx(step.metrics["loss"], rel=1e-5)
    highest = max(view.examples, key=lambda one: one.loss)
    root = Path(open_stretch(images, "5-6").experiment.data.source.root)  # pyright: ignore
    assert (root / highest.place.name).parent.name == highest.place.group
    assert view.pictures[highest.row].ndim == 3 and highest.gradient is not None
