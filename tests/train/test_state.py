from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.optim.optimizers import Adafactor
from jaxpretrain.optim.outliers import record
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.train.experiment import Ema, Experiment, Skip, resolve
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.state import TrainState


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


def test_factored_moments_lie_as_what_is_left_of_their_parameters(experiment: Experiment):
    optim = Adafactor(schedule=experiment.optim.schedule, min_size=2, beta1=0.9)
    variant = resolve(replace(experiment, mesh=Mesh(2, 2, 2), optim=optim))
    state = make_program(variant, jax.devices()).state
    moment = state.optimizer["adafactor"]
    specs = [
        tree["blocks"]["0"]["query"]["kernel"].sharding.spec
        for tree in (state.params, moment.row, moment.column)
    ]
    assert specs == [P(None, "fsdp", "tensor"), P(None, "fsdp", None), P(None, None, "tensor")]
    assert moment.row["embed"]["embedding"].sharding.spec == P("tensor", None)
    assert moment.count.sharding.is_fully_replicated
    shardings = [jax.tree.map(lambda x: x.sharding, t) for t in (state.params, moment.whole)]
    assert not jax.tree.leaves(shardings[1])  # this model has matrices alone
    assert jax.tree.map(lambda x: x.sharding, state.optimizer["momentum"].ema) == shardings[0]


def test_an_average_of_the_weights_begins_as_a_copy_and_lies_as_they_do(experiment: Experiment):
    train = replace(experiment.train, ema=Ema(0.9))
    program = make_program(
        resolve(replace(experiment, mesh=Mesh(2, 2, 2), train=train)), jax.devices()
    )
    state = program.create_state()
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    shardings = [jax.tree.map(lambda x: x.sharding, t) for t in (state.params, state.ema)]
    assert shardings[0] == shardings[1]


def test_a_checkpoint_knows_what_is_kept_beside_the_weights(experiment: Experiment, tmp_path: Path):
    """A run that goes on has the same average, and judges by the same window."""
    train = replace(experiment.train, ema=Ema(0.9), on_bad_step=Skip(outliers=6.0))
    program = make_program(resolve(replace(experiment, train=train)), jax.devices()[:1])
    state = program.create_state()
    metrics = {"loss": jnp.float32(2.5), "grad_norm": jnp.float32(0.5)}
    state = replace(
        state,
        ema=jax.tree.map(lambda p: p + 1, state.params),
        history=record(state.history, metrics),
    )
    named = to_named(state)
    assert "ema/blocks/0/query/kernel" in named
    assert {n for n in named if n.startswith("history/")} == {
        "history/count",
        "history/loss",
        "history/grad_norm",
    }
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, state, {})
    checkpoints.wait()
    restored = checkpoints.restore_newest(program.state)
    checkpoints.wait()
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored[1], state)


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
        state = replace(program, experiment=replace(program.experiment, seed=seed)).create_state()
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
