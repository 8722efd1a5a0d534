"""The state of training, passed by value."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.checkpoints.names import from_named, to_named
from jaxpretrain.models.contract import Model, Params, is_axes
from jaxpretrain.optim.outliers import empty_history
from jaxpretrain.parallel.mesh import Layout
from jaxpretrain.train.experiment import Train


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that the next step depends on, besides its batch.

    A checkpoint holds these fields under their names (`params/...`, `optimizer/...`).
    """

    step: jax.Array  # int32 [], finished steps
    rng: jax.Array  # uint32 [2], key of the run; every draw folds in the step
    params: Params  # float32
    optimizer: Any  # state of the Optax chain, by the names of its parts
    ema: Params = field(default_factory=dict)  # average of the params; {}: there is none
    history: dict[str, jax.Array] = field(default_factory=dict)  # `outliers.History`, or {}


def make_init(model: Model, transform: optax.GradientTransformation, train: Train):
    """A traceable function seed -> TrainState."""

    def init(seed: jax.Array) -> TrainState:
        rng = jax.random.key(seed)
        params = model.init(jax.random.fold_in(rng, 0))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            rng=jax.random.key_data(rng),
            params=params,
            optimizer=transform.init(params),
            # Copies: the step is given both, to write into.
            ema={} if train.ema is None else jax.tree.map(jnp.copy, params),
            history={} if train.skip.outliers is None else empty_history(),
        )

    return init


def abstract_state(
    model: Model, transform: optax.GradientTransformation, layout: Layout, train: Train
) -> TrainState:
    """Shapes, dtypes and shardings of the state; optimizer state lies as its parameters do."""
    shapes = jax.eval_shape(make_init(model, transform, train), 0)
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


def create_state(
    model: Model,
    transform: optax.GradientTransformation,
    train: Train,
    like: TrainState,
    seed: int,
) -> TrainState:
    """A fresh state, born sharded: it never exists in one place."""
    shardings = jax.tree.map(lambda s: s.sharding, like)
    return jax.jit(make_init(model, transform, train), out_shardings=shardings)(seed)


def _optimizer_shardings(model: Model, layout: Layout, shapes: TrainState) -> Any:
    """An array whose name ends in a parameter's lies as that parameter; the others are replicated.

    Axes that a factored moment has reduced to size one are divided over no devices.
    """
    leaves = jax.tree.leaves(model.axes(), is_leaf=is_axes)
    axes = dict(zip(to_named(shapes.params), leaves, strict=True))

    def sharding(name: str, shape: tuple[int, ...]) -> Any:
        parts = name.split("/")
        for ending in ("/".join(parts[i:]) for i in range(len(parts))):
            if ending in axes:
                return layout.sharding(axes[ending], shape)
        return layout.replicated

    named = {name: sharding(name, s.shape) for name, s in to_named(shapes.optimizer).items()}
    return from_named(shapes.optimizer, named)
