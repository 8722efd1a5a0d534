"""The training step, the only training `jit` of the package.

Gradients and losses are sums over examples with their weights; microbatches add up inside the
step, and one division at the end makes them means. So any split of a batch gives the same update.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.config.errors import InputError
from jaxpretrain.models.contract import Batch, Model
from jaxpretrain.optim.optimizers import Optimizer
from jaxpretrain.parallel.mesh import Layout
from jaxpretrain.train.state import TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    model: Model, optimizer: Optimizer, layout: Layout, num_microbatches: int
) -> TrainStep:
    """(state, batch) -> (state, metrics): one update from one global batch.

    Metrics are float32 scalars: the model's means, `grad_norm` (before clipping), `update_norm`,
    `param_norm`, `learning_rate`, `weight` (predicted tokens or images of the batch).
    """
    gradient = jax.value_and_grad(_objective(model), has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step + 1)

        def add_microbatch(sums: Any, index_and_batch: Any) -> tuple[Any, None]:
            index, microbatch = index_and_batch
            microbatch = {name: layout.constrain_batch(x) for name, x in microbatch.items()}
            (_, aux), grads = gradient(state.params, microbatch, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, sums, (grads, aux)), None

        if num_microbatches == 1:
            (_, (weight, sums)), grads = gradient(state.params, batch, jax.random.fold_in(rng, 0))
        else:
            portions = (jnp.arange(num_microbatches), _split(batch, num_microbatches))
            first = jax.tree.map(lambda x: x[0], portions)
            shapes = jax.eval_shape(gradient, state.params, first[1], rng)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0][1]))
            (grads, (weight, sums)), _ = jax.lax.scan(add_microbatch, zeros, portions)

        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, optimizer_state = optimizer.transform.update(grads, state.optimizer, state.params)
        metrics = {name: total / weight for name, total in sums.items()}
        metrics |= {
            "weight": weight,
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "param_norm": optax.global_norm(state.params),
            "learning_rate": jnp.asarray(optimizer.learning_rate(state.step + 1), jnp.float32),
        }
        params: Any = optax.apply_updates(state.params, updates)
        new_state = TrainState(
            step=state.step + 1,
            rng=state.rng,
            params=params,
            optimizer=optimizer_state,
        )
        return new_state, metrics

    return train_step


def compile_train_step(
    train_step: TrainStep,
    state: TrainState,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    compiler_options: Mapping[str, bool | str],
) -> Any:
    """Compiles the step for abstract, sharded arguments. The state is donated.

    The result refuses other shapes and layouts, so nothing is ever compiled a second time.

    Raises:
      InputError: the compiler does not know an option, or does not take its value.
    """
    shardings = jax.tree.map(lambda s: s.sharding, state)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
    lowered = jitted.lower(state, dict(batch))
    try:
        return lowered.compile(compiler_options=dict(compiler_options))
    except jax.errors.JaxRuntimeError as error:
        if "compile option" in str(error) or "setting option" in str(error):
            raise InputError(f"train.compiler_options: {error}") from error
        raise


def _objective(model: Model):
    def objective(params: Any, batch: Batch, rng: jax.Array):
        total, weight, examples = model.loss(params, batch, rng)
        sums = {name: jnp.sum(x) for name, x in examples.items() if name != "weight"}
        return total, (weight, sums)

    return objective


def _split(batch: Batch, parts: int) -> dict[str, jax.Array]:
    """[b, ...] -> [parts, b / parts, ...], each part spread over all devices.

    Microbatch i takes every `parts`-th example, so each device splits its own rows and nothing
    moves between devices.
    """
    return {
        name: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
        for name, x in batch.items()
    }
