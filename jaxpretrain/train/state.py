"""The state of training, passed by value."""

from collections.abc import Callable
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
