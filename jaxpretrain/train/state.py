"""The state of training, passed by value."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.models.contract import Model, Params
from jaxpretrain.parallel.mesh import Layout


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


def make_init(model: Model, transform: optax.GradientTransformation):
    """A traceable function seed -> TrainState."""

    def init(seed: jax.Array) -> TrainState:
        rng = jax.random.key(seed)
        params = model.init(jax.random.fold_in(rng, 0))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            rng=jax.random.key_data(rng),
            params=params,
            optimizer=transform.init(params),
        )

    return init


def abstract_state(
    model: Model, transform: optax.GradientTransformation, layout: Layout
) -> TrainState:
    """Shapes, dtypes and shardings of the state; optimizer state lies as its parameters do."""
    shapes = jax.eval_shape(make_init(model, transform), 0)
    param_shardings = layout.tree(model.axes(), shapes.params)
    optimizer_shardings = optax.tree_map_params(
        transform,
        lambda _, sharding: sharding,
        shapes.optimizer,
        param_shardings,
        transform_non_params=lambda _: layout.replicated,
    )
    sharded: Any = TrainState  # the same fields hold shardings here
    shardings = sharded(
        step=layout.replicated,
        rng=layout.replicated,
        params=param_shardings,
        optimizer=optimizer_shardings,
    )
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def create_state(
    model: Model, transform: optax.GradientTransformation, like: TrainState, seed: int
) -> TrainState:
    """A fresh state, born sharded: it never exists in one place."""
    shardings = jax.tree.map(lambda s: s.sharding, like)
    return jax.jit(make_init(model, transform), out_shardings=shardings)(seed)
