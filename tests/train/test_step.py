from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.state import TrainState
from jaxpretrain.train.step import compile_train_step, make_train_step

BATCH_SIZE, SEQ_LEN = 16, 16


def _batches(num_batches: int = 3) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    shape = (num_batches, BATCH_SIZE, SEQ_LEN)
    return [{"tokens": tokens} for tokens in random.integers(61, size=shape, dtype=np.int32)]


def _place(program: Program, state: TrainState) -> TrainState:
    return jax.device_put(state, jax.tree.map(lambda s: s.sharding, program.state))


def _run(
    program: Program, step: Any, state: TrainState, batches: list[Mapping[str, np.ndarray]]
) -> tuple[list[dict[str, float]], TrainState]:
    """The metrics of each step, and the final state, on the host."""
    state, reports = _place(program, state), []
    for batch in batches:
        state, metrics = step(state, program.layout.put(batch, BATCH_SIZE))
        reports.append({name: float(value) for name, value in metrics.items()})
    return reports, jax.device_get(state)


def _assert_same(found: Any, expected: Any) -> None:
    """Metrics to a few float32 roundings, parameters to a thousandth of an update."""
    for a, b in zip(found[0], expected[0], strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6)


@pytest.fixture(scope="module")
def reference(program: Program, compiled: Any, fresh: TrainState):
    """Three steps on one device, the batch in one piece."""
    return _run(program, compiled, fresh, _batches())


@pytest.mark.parametrize(
    ("num_devices", "mesh", "microbatch_size"),
    [
        (1, Mesh(), 4),
        (8, Mesh(replica=8, fsdp=1), None),
        (8, Mesh(fsdp=8), None),
        (8, Mesh(fsdp=1, tensor=8), None),
        (8, Mesh(replica=2, fsdp=2, tensor=2), 2),
    ],
)
def test_any_mesh_and_any_microbatches_give_the_same_training(
    experiment: Experiment, fresh: TrainState, reference, num_devices, mesh, microbatch_size
):
    train = replace(experiment.train, microbatch_size=microbatch_size)
    variant = resolve(replace(experiment, mesh=mesh, train=train))
    program = make_program(variant, jax.devices()[:num_devices])
    assert program.num_microbatches == (BATCH_SIZE // program.layout.num_data) // (
        microbatch_size or BATCH_SIZE // program.layout.num_data
    )
    _assert_same(_run(program, program.compile(), fresh, _batches()), reference)


def test_the_order_of_examples_in_a_batch_does_not_matter(
    program: Program, compiled: Any, fresh: TrainState, reference
):
    shuffled = [{"tokens": batch["tokens"][::-1].copy()} for batch in _batches()]
    _assert_same(_run(program, compiled, fresh, shuffled), reference)


def test_examples_of_unequal_weight_make_one_weighted_mean(program: Program, fresh: TrainState):
    """Whatever the microbatches: here their weights differ, and one of them weighs nothing."""
    weight = np.repeat(np.array([0.0, 3.0, 0.5, 1.0], np.float32), 4).reshape(4, 4).T.reshape(-1)
    batch = {**_batches(1)[0], "weight": weight}
    spec = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=program.layout.batch)
        for name, x in batch.items()
    }
    options = program.experiment.train.compiler_options
    results = []
    for parts in (1, 4):
        step = make_train_step(program.model, program.optimizer, program.layout, parts)
        compiled = compile_train_step(step, program.state, spec, options)
        results.append(_run(program, compiled, fresh, [batch]))
    _assert_same(results[1], results[0])

    def loss(params: Any, row: jax.Array) -> jax.Array:
        return program.model.loss(params, {"tokens": row[None]}, jax.random.key(0))[0] / 15

    losses = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(fresh.params, batch["tokens"])
    metrics = results[1][0][0]
    assert metrics["weight"] == pytest.approx(15 * weight.sum())
    assert metrics["loss"] == pytest.approx(np.average(losses, weights=weight), rel=1e-5)


def test_metrics_are_what_their_names_say(program: Program, fresh: TrainState, reference):
    batch = _batches(1)[0]

    def mean_loss(params: Any) -> jax.Array:
        total, weight, _ = program.model.loss(params, batch, jax.random.key(0))
        return total / weight

    options: Any = program.experiment.train.compiler_options
    gradient = jax.jit(jax.value_and_grad(mean_loss), compiler_options=options)
    loss, grads = gradient(fresh.params)
    first, *_ = reference[0]
    assert set(first) == {
        "loss",
        "z",
        "weight",
        "grad_norm",
        "update_norm",
        "param_norm",
        "learning_rate",
    }
    assert first["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert first["weight"] == BATCH_SIZE * (SEQ_LEN - 1)
    squares = sum(float(np.sum(np.square(g, dtype=np.float64))) for g in jax.tree.leaves(grads))
    assert first["grad_norm"] == pytest.approx(np.sqrt(squares), rel=1e-5)
    assert first["param_norm"] == pytest.approx(float(optax.global_norm(fresh.params)), rel=1e-5)


def test_the_update_norm_is_the_way_the_parameters_went(
    program: Program, compiled: Any, fresh: TrainState
):
    (metrics,), state = _run(program, compiled, fresh, _batches(1))
    moved = jax.tree.map(lambda a, b: a - b, state.params, fresh.params)
    assert metrics["update_norm"] == pytest.approx(float(optax.global_norm(moved)), rel=1e-4)
    assert metrics["update_norm"] > 0


def test_the_learning_rate_is_that_of_the_update_just_made(reference):
    """Triangular from 1e-3 to 1e-2 in two steps, then to 1e-4 in three."""
    rates = [metrics["learning_rate"] for metrics in reference[0]]
    assert rates == pytest.approx([5.5e-3, 1e-2, 1e-2 - 9.9e-3 / 3])


def test_each_step_counts_and_the_key_stays(fresh: TrainState, reference):
    state = reference[1]
    assert fresh.step == 0 and state.step == 3
    np.testing.assert_array_equal(state.rng, fresh.rng)


def test_the_state_is_donated(program: Program, compiled: Any, fresh: TrainState):
    state = _place(program, fresh)
    compiled(state, program.layout.put(_batches(1)[0], BATCH_SIZE))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.optimizer)))


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((BATCH_SIZE // 2, SEQ_LEN), np.int32),
        np.zeros((BATCH_SIZE, SEQ_LEN + 1), np.int32),
        np.zeros((BATCH_SIZE, SEQ_LEN), np.float32),
    ],
)
def test_another_shape_is_refused_and_not_compiled(
    program: Program, compiled: Any, fresh: TrainState, batch: np.ndarray
):
    with pytest.raises(TypeError, match="tokens"):
        compiled(_place(program, fresh), {"tokens": jnp.asarray(batch)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xla_no_such_thing": "1"}, "train.compiler_options: .*'xla_no_such_thing'"),
        ({"xla_backend_optimization_level": "high"}, "train.compiler_options: .*'high'"),
    ],
)
def test_options_that_the_compiler_does_not_take_are_one_line(program: Program, options, message):
    step = make_train_step(program.model, program.optimizer, program.layout, 1)
    with pytest.raises(InputError, match=message):
        compile_train_step(step, program.state, program.batch, options)
