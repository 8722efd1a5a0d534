from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.text.mixture import Mixture, MixtureSource
from jaxpretrain.optim.optimizers import Adafactor, Lion, Muon, OptimizerChoice
from jaxpretrain.optim.outliers import record
from jaxpretrain.optim.schedules import Triangular
from jaxpretrain.parallel.mesh import Mesh
from jaxpretrain.train.experiment import Ema, Experiment, Skip, resolve
from jaxpretrain.train.program import Program, make_program
from jaxpretrain.train.step import TrainState


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


BATCH_SIZE, SEQ_LEN = 16, 16
SAME = 3e-7
"""Relative difference of metrics that only differ in the order of their sums, in float32."""


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
        scalars = {name: x for name, x in metrics.items() if name != "signals"}
        reports.append({name: float(value) for name, value in scalars.items()})
    return reports, jax.device_get(state)


def _assert_same(found: Any, expected: Any, rel: float = SAME) -> None:
    """The first two steps to rounding, later ones to a few roundings, parameters to a thousandth of
    an update.
    """
    for a, b in zip(found[0][:2], expected[0], strict=False):
        assert a == pytest.approx(b, rel=rel)
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


@pytest.fixture(scope="module")
def rounded(experiment: Experiment) -> list[dict[str, float]]:
    """Two steps on one device in bfloat16."""
    return _in_bfloat16(experiment, 1, Mesh(), None)


def _in_bfloat16(
    experiment: Experiment, num_devices: int, mesh: Mesh, microbatch_size: int | None
) -> list[dict[str, float]]:
    train = replace(experiment.train, microbatch_size=microbatch_size)
    model = replace(experiment.model, dtype="bfloat16", remat="dots")
    variant = resolve(replace(experiment, model=model, mesh=mesh, train=train))
    program = make_program(variant, jax.devices()[:num_devices])
    return _run(program, program.compile(), program.create_state(), _batches(2))[0]


@pytest.mark.parametrize(
    ("mesh", "microbatch_size"), [(Mesh(fsdp=8), None), (Mesh(replica=2), 1), (Mesh(2, 2, 2), 2)]
)
def test_meshes_give_the_same_training_in_bfloat16(
    experiment: Experiment, rounded, mesh: Mesh, microbatch_size: int | None
):
    found = _in_bfloat16(experiment, 8, mesh, microbatch_size)
    for a, b in zip(found, rounded, strict=True):
        assert a == pytest.approx(b, rel=3e-4)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_as_many_microbatches_as_are_wanted_are_folded_over(experiment: Experiment, number: int):
    train = replace(experiment.train, microbatch_size=BATCH_SIZE // number)
    program = make_program(resolve(replace(experiment, train=train)), jax.devices()[:1])
    jaxpr: Any = program.traced_step.jaxpr
    folds = [eqn.params["length"] for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    # One microbatch folds over the layers alone, forward and backward.
    assert (folds == [number]) == (number > 1)


SCHEDULE = Triangular(start=1e-3, peak=1e-2, end=1e-4, warmup="2 steps")


@pytest.mark.parametrize(
    "optim",
    [
        pytest.param(Lion(schedule=SCHEDULE), marks=pytest.mark.slow, id="Lion"),
        Adafactor(schedule=SCHEDULE, min_size=2, parameter_scale=1e-3, beta1=0.9),
        Muon(schedule=SCHEDULE, epsilon=1e-3),
    ],
    ids=lambda optim: type(optim).__name__,
)
def test_every_optimizer_gives_the_same_training_on_a_mesh(
    experiment: Experiment, optim: OptimizerChoice
):
    """Layers are told apart and moments factored across devices too."""
    results = []
    for num_devices, mesh in ((1, Mesh()), (8, Mesh(2, 2, 2))):
        variant = resolve(replace(experiment, mesh=mesh, optim=optim))
        program = make_program(variant, jax.devices()[:num_devices])
        compiled = program.compile()
        results.append(_run(program, compiled, program.create_state(), _batches()))
    _assert_same(results[1], results[0])


@pytest.fixture(scope="module")
def careful(experiment: Experiment) -> Program:
    """With an average of the weights, and all bad steps skipped."""
    train = replace(experiment.train, ema=Ema(0.75), on_bad_step=Skip(outliers=6.0))
    return make_program(resolve(replace(experiment, train=train)), jax.devices()[:1])


@pytest.fixture(scope="module")
def careful_step(careful: Program) -> Any:
    """Its step, for batches with weights."""
    sharding = careful.layout.batch
    weight = jax.ShapeDtypeStruct((BATCH_SIZE,), jnp.float32, sharding=sharding)
    return replace(careful, batch={**careful.batch, "weight": weight}).compile()


def _weighted(index: int, weight: float) -> dict[str, np.ndarray]:
    weights = np.ones(BATCH_SIZE, np.float32)
    weights[3] = weight
    return {**_batches()[index], "weight": weights}


def test_the_average_of_the_weights_is_taken_after_each_update(
    careful: Program, careful_step: Any, reference
):
    state = jax.device_get(careful.create_state())
    expected = state.params
    for index in range(3):
        (metrics,), state = _run(careful, careful_step, state, [_weighted(index, 1.0)])
        expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, expected, state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), state.ema, expected)
        assert metrics["skipped"] == 0.0
    # Training itself is that without all this.
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6)  # noqa: E731
    jax.tree.map(same, state.params, reference[1].params)


def _assert_skipped(before: TrainState, after: TrainState, metrics: dict[str, float]) -> None:
    assert metrics["skipped"] == 1.0 and metrics["update_norm"] == 0.0
    _assert_unmoved(before, after)


def _assert_unmoved(before: TrainState, after: TrainState) -> None:
    """Nothing moved, bit for bit, but the step and the learning rate, which follows it."""
    assert after.step == before.step + 1
    before_optimizer, after_optimizer = dict(before.optimizer), dict(after.optimizer)
    del before_optimizer["learning_rate"]
    assert after_optimizer.pop("learning_rate").count == after.step
    kept = (before.params, before.ema, before_optimizer)
    found = (after.params, after.ema, after_optimizer)
    jax.tree.map(np.testing.assert_array_equal, found, kept)


def test_a_step_that_is_not_finite_changes_nothing(careful: Program, careful_step: Any):
    _, before = _run(careful, careful_step, careful.create_state(), [_weighted(0, 1.0)])
    (metrics,), after = _run(careful, careful_step, before, [_weighted(1, np.nan)])
    assert np.isnan(metrics["loss"])
    _assert_skipped(before, after, metrics)
    jax.tree.map(np.testing.assert_array_equal, after.history, before.history)
    (metrics,), later = _run(careful, careful_step, after, [_weighted(2, 1.0)])
    assert metrics["skipped"] == 0.0 and np.isfinite(metrics["loss"])
    assert later.optimizer["adam"].count == 2  # the skipped one does not count for the moments
    assert metrics["learning_rate"] == pytest.approx(1e-2 - 9.9e-3 / 3)  # of step 3


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_an_outlier_changes_nothing_but_the_window(careful: Program, careful_step: Any, name):
    _, before = _run(careful, careful_step, careful.create_state(), [_weighted(0, 1.0)])
    levels = {"loss": 100.0, "grad_norm": 100.0} | {name: 1e-3}
    full = {key: np.full(128, level, np.float32) for key, level in levels.items()}
    before = replace(before, history=full | {"count": np.int32(200)})
    (metrics,), after = _run(careful, careful_step, before, [_weighted(1, 1.0)])
    _assert_skipped(before, after, metrics)
    assert after.history["count"] == 201
    for key in levels:
        expected = full[key].copy()
        expected[200 - 128] = metrics[key]
        np.testing.assert_array_equal(after.history[key], expected)


def test_ordinary_steps_count_where_outliers_alone_are_skipped(experiment: Experiment):
    train = replace(experiment.train, on_bad_step=Skip(not_finite=False, outliers=6.0))
    program = make_program(resolve(replace(experiment, train=train)), jax.devices()[:1])
    metrics, _ = _run(program, program.compile(), program.create_state(), _batches())
    assert [(found["skipped"], found["update_norm"] > 0) for found in metrics] == [(0, True)] * 3


def _assert_no_update(before: TrainState, after: TrainState, metrics: dict[str, float]) -> None:
    """As of a skipped step; the means of nothing are unknown, norms and weight are 0."""
    _assert_unmoved(before, after)
    assert np.isnan(metrics["loss"])
    zeros = ("weight", "grad_norm", "update_norm")
    assert [metrics[name] for name in zeros] == [0.0, 0.0, 0.0]


def test_a_batch_in_which_nothing_counts_is_no_update_and_no_skipped_step(
    careful: Program, careful_step: Any
):
    """Neither does it enter the window of what losses are compared with."""
    _, before = _run(careful, careful_step, careful.create_state(), [_weighted(0, 1.0)])
    empty = {**_batches()[1], "weight": np.zeros(BATCH_SIZE, np.float32)}
    (metrics,), after = _run(careful, careful_step, before, [empty])
    _assert_no_update(before, after, metrics)
    assert metrics["skipped"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, after.history, before.history)
    (metrics,), _ = _run(careful, careful_step, after, [_weighted(2, 1.0)])
    assert metrics["learning_rate"] == pytest.approx(1e-2 - 9.9e-3 / 3)  # of step 3


@pytest.mark.parametrize("parts", [1, 4])
def test_without_any_care_a_batch_in_which_nothing_counts_is_no_update_either(
    program: Program, fresh: TrainState, parts: int
):
    """In one piece and in microbatches; the next step is one as any other."""
    weight = jax.ShapeDtypeStruct((BATCH_SIZE,), jnp.float32, sharding=program.layout.batch)
    batch = {**program.batch, "weight": weight}
    compiled = replace(program, num_microbatches=parts, batch=batch).compile()
    first, second, _ = (_weighted(index, 1.0) for index in range(3))
    empty = {**second, "weight": np.zeros(BATCH_SIZE, np.float32)}
    _, before = _run(program, compiled, fresh, [first])
    (metrics,), after = _run(program, compiled, before, [empty])
    _assert_no_update(before, after, metrics)
    (metrics,), _ = _run(program, compiled, after, [second])
    assert np.isfinite(metrics["loss"]) and metrics["update_norm"] > 0.0


def test_unless_told_a_bad_step_is_not_skipped(program: Program, reference):
    assert not program.state.ema and not program.state.history
    assert all("skipped" not in metrics for metrics in reference[0])


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
    results = []
    for parts in (1, 4):
        compiled = replace(program, num_microbatches=parts, batch=spec).compile()
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
        ({"xla_no_such_thing": "1"}, "train.compiler_options: .*'xla_no_such_thing'$"),
        ({"xla_cpu_enable_fastmath": True}, "fastmath'. Did you mean 'xla_cpu_enable_fast_math'"),
        ({"xla_backend_optimization_level": "high"}, "train.compiler_options: .*'high'"),
    ],
)
def test_options_that_the_compiler_does_not_take_are_one_line(program: Program, options, message):
    with pytest.raises(InputError, match=message):
        program.compile(options)


@pytest.mark.parametrize(("num_devices", "mesh", "parts"), [(1, Mesh(), 1), (8, Mesh(2, 2, 2), 2)])
def test_each_source_has_its_loss_and_together_they_are_the_batchs(
    experiment: Experiment, fresh: TrainState, num_devices, mesh, parts
):
    program = make_program(
        resolve(replace(experiment, mesh=mesh, train=replace(experiment.train, batch_size=16))),
        jax.devices()[:num_devices],
    )
    names = ("books", "code", "absent")
    source = np.arange(BATCH_SIZE, dtype=np.int32) % 3 // 2  # two books to one of code
    batch = {**_batches()[0], "source": source}
    spec = program.layout.batch_spec(
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    )
    mixture = Mixture(sources={name: MixtureSource() for name in names}, seq_len=SEQ_LEN)
    mixed = replace(program.experiment, data=mixture)
    compiled = replace(program, experiment=mixed, num_microbatches=parts, batch=spec).compile()
    (metrics,), _ = _run(program, compiled, fresh, [batch])
    for index, name in enumerate(names[:2]):
        alone = {"tokens": batch["tokens"], "weight": np.float32(source == index)}
        loss = jax.jit(program.model.loss)(fresh.params, alone, jax.random.key(0))
        assert metrics[f"{name}/loss"] == pytest.approx(float(loss[0] / loss[1]), rel=1e-5)
        assert metrics[f"{name}/weight"] == float(loss[1])
    assert np.isnan(metrics["absent/loss"]) and metrics["absent/weight"] == 0
    total = sum(metrics[f"{name}/loss"] * metrics[f"{name}/weight"] for name in names[:2])
    assert metrics["loss"] == pytest.approx(total / metrics["weight"], rel=1e-5)
