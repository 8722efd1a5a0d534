"""The state of training, and the training step, the only training `jit` of the package.

The state is passed by value. Gradients and losses are sums over examples with their weights;
microbatches add up inside the step, and one division at the end makes them means. So any split of a
batch gives the same update. A batch of weight 0, in which nothing is predicted, is no update.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.models.contract import Batch, Model, Params, is_axes
from jaxpretrain.optim.layers import norms
from jaxpretrain.optim.optimizers import Optimizer
from jaxpretrain.optim.outliers import all_finite, empty_history, is_outlier, record, select
from jaxpretrain.parallel.mesh import Layout
from jaxpretrain.train.experiment import Skip, Train


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on besides its batch.

    A checkpoint holds these fields under their names (`params/...`, `optimizer/...`).
    """

    step: jax.Array  # int32 [], finished steps
    rng: jax.Array  # uint32 [2], key of the run; every random draw folds in the step
    params: Params  # float32
    optimizer: Any  # state of the Optax chain, by the names of its parts
    ema: Params = field(default_factory=dict)  # average of the params; {} without one
    history: dict[str, jax.Array] = field(default_factory=dict)  # `outliers.History`, or {}


def make_init(
    model: Model, transform: optax.GradientTransformation, train: Train
) -> Callable[[jax.typing.ArrayLike], TrainState]:
    """Returns a traceable function from a seed to a fresh state."""

    def init(seed: jax.typing.ArrayLike) -> TrainState:
        rng = jax.random.key(seed)
        params = model.init(jax.random.fold_in(rng, 0))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            rng=jax.random.key_data(rng),
            params=params,
            optimizer=transform.init(params),
            # Copies, because the step writes into both.
            ema={} if train.ema is None else jax.tree.map(jnp.copy, params),
            history={} if train.skip.outliers is None else empty_history(),
        )

    return init


def abstract_state(
    model: Model, layout: Layout, init: Callable[[jax.typing.ArrayLike], TrainState]
) -> TrainState:
    """Returns the sharded shapes of the state that `init` makes, moments as their parameters."""
    shapes = jax.eval_shape(init, 0)
    param_shardings = layout.tree(model.axes(), shapes.params)
    sharded: Any = TrainState  # the same fields hold shardings here
    shardings = sharded(
        step=layout.replicated,
        rng=layout.replicated,
        params=param_shardings,
        optimizer=_optimizer_shardings(model, layout, shapes),
        ema=param_shardings if shapes.ema else {},
        history=jax.tree.map(lambda _: layout.replicated, shapes.history),
    )
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _optimizer_shardings(model: Model, layout: Layout, shapes: TrainState) -> Any:
    """Shards an array as the parameter whose name its own ends with, and replicates the others.

    An axis that a factored moment has reduced to size one is not divided.
    """
    leaves = jax.tree.leaves(model.axes(), is_leaf=is_axes)
    axes = dict(zip(to_named(shapes.params), leaves, strict=True))

    def sharding(name: str, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
        parts = name.split("/")
        for ending in ("/".join(parts[i:]) for i in range(len(parts))):
            if ending in axes:
                return layout.sharding(axes[ending], shape)
        return layout.replicated

    named = {name: sharding(name, s.shape) for name, s in to_named(shapes.optimizer).items()}
    return from_named(shapes.optimizer, named)


Metrics = dict[str, Any]
"""Scalars by name, and under `signals` the arrays of parts and layers by name."""
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""One update: from a state and a batch to the next state and metrics."""

_LEAVES_OUT = ("mask", "weight")
"""Arrays of a batch that can leave out examples, even all of them."""
Sums = tuple[Params, jax.Array, dict[str, Any]]
"""Sums over a batch: gradients, weight, and losses by name and source."""


def make_train_step(
    model: Model,
    optimizer: Optimizer,
    layout: Layout,
    num_microbatches: int,
    train: Train,
    sources: tuple[str, ...],
) -> TrainStep:
    """Makes the function that updates the state from one global batch.

    `sources` are the names of the numbers in `batch["source"]` [b], where the data has sources.

    Metrics are float32 scalars: the model's means, `grad_norm` (before clipping), `update_norm`,
    `param_norm`, `learning_rate`, `weight` (predicted tokens or images of the batch), and
    `skipped` where steps can be skipped: 1 for a step that was too bad to change the weights. Each
    source has `NAME/loss` and `NAME/weight`. Means over no weight are not numbers. `signals` holds
    gradient norms, weight norms and update ratios of each part and layer, by name.
    """
    sum_gradient = layout.by_copy(make_sum_gradient(model, layout, num_microbatches, len(sources)))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng, batch = step_key(state.rng, state.step), numbered(batch, layout)
        grads, weight, sums = sum_gradient(state.params, batch, rng)
        is_empty = None if batch.keys().isdisjoint(_LEAVES_OUT) else weight == 0
        divisor = weight if is_empty is None else jnp.where(is_empty, 1.0, weight)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        updates, optimizer_state = optimizer.transform.update(grads, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = _means(sums, weight, sources) | _norms(grads, updates, state.params)
        rate = optimizer.learning_rate(state.step + 1)
        metrics["learning_rate"] = jnp.asarray(rate, jnp.float32)
        new_state = replace(state, step=state.step + 1, params=params, optimizer=optimizer_state)
        if train.ema is not None:
            old, new = train.ema.decay, 1.0 - train.ema.decay
            ema = jax.tree.map(lambda e, p: old * e + new * p, state.ema, params)
            new_state = replace(new_state, ema=ema)
        return _keep_if_bad(train.skip, state, new_state, metrics, is_empty)

    return train_step


def step_key(rng: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the key of all random draws in the step after `step`, from that of the run."""
    return jax.random.fold_in(jax.random.wrap_key_data(rng), step + 1)


def numbered(batch: Batch, layout: Layout) -> dict[str, jax.Array]:
    """Returns a batch with the numbers of its rows."""
    batch_size = len(next(iter(batch.values())))
    return {**batch, "row": layout.constrain_batch(jnp.arange(batch_size))}


def make_sum_gradient(
    model: Model, layout: Layout, num_microbatches: int, num_sources: int
) -> Callable[[Params, Batch, jax.Array], Sums]:
    """Makes the function (params, batch, rng) -> sums over the batch, in microbatches."""

    def objective(params: Params, batch: Batch, rng: jax.Array):
        total, weight, examples = model.loss(params, batch, rng)
        sums: dict[str, Any] = {n: jnp.sum(x) for n, x in examples.items() if n != "weight"}
        sums["by_source"] = {
            name: jax.ops.segment_sum(examples[name], batch["source"], num_sources)
            for name in ("loss", "weight")
            if num_sources
        }
        return total, (weight, sums)

    def gradient(params: Params, batch: Batch, rng: jax.Array) -> Sums:
        grads, (weight, sums) = jax.grad(objective, has_aux=True)(params, batch, rng)
        return grads, weight, sums

    def accumulated(params: Params, batch: Batch, rng: jax.Array) -> Sums:
        def add(sums: Sums, microbatch: Batch) -> tuple[Sums, None]:
            microbatch = {name: layout.constrain_batch(x) for name, x in microbatch.items()}
            return jax.tree.map(jnp.add, sums, gradient(params, microbatch, rng)), None

        portions = _split(batch, num_microbatches)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], portions), rng)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, portions)[0]

    return accumulated if num_microbatches > 1 else gradient


def _means(sums: dict[str, Any], weight: jax.Array, sources: tuple[str, ...]) -> Metrics:
    by_source = sums["by_source"]
    means = {name: total / weight for name, total in sums.items() if name != "by_source"}
    for index, source in enumerate(sources):
        means[f"{source}/loss"] = by_source["loss"][index] / by_source["weight"][index]
        means[f"{source}/weight"] = by_source["weight"][index]
    return means | {"weight": weight}


def _norms(grads: Params, updates: Any, params: Params) -> Metrics:
    """Returns the norms of all arrays together, and as `signals` of each part and layer."""
    grad_norm, grad_parts = norms(grads)
    update_norm, update_parts = norms(updates)
    param_norm, param_parts = norms(params)
    signals = {
        "grad_norm": grad_parts,
        "param_norm": param_parts,
        "update_ratio": {part: x / param_parts[part] for part, x in update_parts.items()},
    }
    return {
        "grad_norm": grad_norm,
        "update_norm": update_norm,
        "param_norm": param_norm,
        "signals": {f"{name}/{part}": x for name, of in signals.items() for part, x in of.items()},
    }


def _keep_if_bad(
    skip: Skip, old: TrainState, new: TrainState, metrics: Metrics, is_empty: jax.Array | None
) -> tuple[TrainState, Metrics]:
    """Returns the new state; after an empty or a bad step, with the old weights and moments.

    The learning rate and the warm-up of clipping go on even then: they depend on the step alone, as
    the data does.
    """
    can_be_bad = skip.not_finite or skip.outliers is not None
    if is_empty is None and not can_be_bad:
        return new, metrics  # choosing between two states takes memory
    kept = jnp.bool_(False) if is_empty is None else is_empty
    if skip.outliers is not None:
        new = replace(new, history=record(old.history, metrics))
    if can_be_bad:
        finite = all_finite(metrics)
        bad = ~finite if skip.not_finite else jnp.bool_(False)
        if skip.outliers is not None:
            bad |= finite & is_outlier(old.history, metrics, skip.outliers)
        skipped = bad & ~kept
        kept |= skipped
        metrics = metrics | {"skipped": skipped.astype(jnp.float32)}
    unchanged = replace(
        old,
        step=new.step,
        optimizer=old.optimizer | {name: new.optimizer[name] for name in ("clip", "learning_rate")},
        history=new.history,
    )
    metrics = metrics | {"update_norm": jnp.where(kept, 0.0, metrics["update_norm"])}
    return select(kept, unchanged, new), metrics


def _split(batch: Batch, parts: int) -> dict[str, jax.Array]:
    """Splits [b, ...] into [parts, b / parts, ...], each part spread over all devices.

    Microbatch i takes every `parts`-th example, so that each device splits its own rows and nothing
    moves between devices.
    """
    return {
        name: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
        for name, x in batch.items()
    }
