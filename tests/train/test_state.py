from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.parallel.checkpoint import to_named
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.state import TrainState, create_state


@pytest.fixture(scope="module")
def sharded(experiment: Experiment) -> Program:
    return make_program(resolve(replace(experiment, mesh=Mesh(2, 2, 2))), jax.devices())


@pytest.fixture(scope="module")
def born(sharded: Program) -> TrainState:
    return sharded.create_state()


def test_a_state_is_born_as_the_layout_says(sharded: Program, born: TrainState):
    layout, axes = sharded.layout, sharded.model.axes()
    expected = layout.tree(axes, born.params)
    assert jax.tree.map(lambda x: x.sharding, born.params) == expected
    for moment in (born.optimizer["adam"].mu, born.optimizer["adam"].nu):
        assert jax.tree.map(lambda x: x.sharding, moment) == expected
    assert born.step.sharding == born.rng.sharding == layout.replicated
    assert born.optimizer["adam"].count.sharding.is_fully_replicated
    query = born.params["blocks"]["0"]["query"]["kernel"]
    assert {s.data.shape for s in query.addressable_shards} == {(2, 16, 16)}  # of [2, 32, 32]


def test_the_abstract_state_is_that_of_the_real_one(sharded: Program, born: TrainState):
    """Planning and restoring rely on it."""

    def kind(x: Any) -> tuple[Any, ...]:
        return x.shape, x.dtype, x.sharding

    assert jax.tree.map(kind, sharded.state) == jax.tree.map(kind, born)


def test_initial_values_do_not_depend_on_the_mesh(born: TrainState, fresh: TrainState):
    assert jax.tree.structure(born) == jax.tree.structure(fresh)
    for a, b in zip(jax.tree.leaves(born), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_the_seed_decides(program: Program, fresh: TrainState):
    def create(seed: int) -> dict[str, np.ndarray]:
        state = create_state(program.model, program.optimizer.transform, program.state, seed)
        return {name: np.asarray(x) for name, x in to_named(state).items()}

    again, other = create(program.experiment.seed), create(1)
    for name, value in to_named(fresh).items():
        np.testing.assert_array_equal(again[name], value)
        if name.endswith(("kernel", "embedding")) and name.startswith("params"):
            assert (other[name] != value).any(), name
    assert (other["rng"] != fresh.rng).any()


def test_names_in_a_checkpoint_are_the_contract(fresh: TrainState):
    names = set(to_named(fresh))
    params = {name for name in names if name.startswith("params/")}
    assert "params/blocks/0/query/kernel" in params and "params/embed/embedding" in params
    suffixes = {name.removeprefix("params/") for name in params}
    moments = {f"optimizer/adam/{m}/{suffix}" for m in ("mu", "nu") for suffix in suffixes}
    counts = {"optimizer/adam/count", "optimizer/learning_rate/count"}
    assert names - params == {"step", "rng"} | moments | counts
