"""Optimizers: typed objects that build an Optax chain with named parts.

The parts' names (`clip`, `adam`, `decay`, `learning_rate`) are the names under which a
checkpoint keeps their state.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.config.errors import InputError
from jaxpretrain.optim.schedules import Schedule, Triangular

ParameterKind = Literal["kernel", "embedding", "scale", "bias"]
PARAMETER_KINDS: tuple[ParameterKind, ...] = ("kernel", "embedding", "scale", "bias")


class Optimizer(NamedTuple):
    """An Optax transformation and the learning rate it follows, a function of the update number."""

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, as torch's AdamW: p -= lr * (adam + weight_decay * p)."""

    schedule: Schedule = Triangular()
    """Learning rate over the run."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment (OLMo 1 and its 0424 and 0724 editions: 1e-5)."""
    weight_decay: float = 0.1
    """Decay per unit of learning rate."""
    decayed: tuple[ParameterKind, ...] = ("kernel",)
    """Kinds of parameters that decay: kernel (matrices, an untied head among them), embedding,
    scale (of norms), bias. OLMo 1: kernel; its 0424 edition: all; OLMo 2: kernel,scale."""
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; none: no clipping."""

    def build(self, num_steps: int, params: Any) -> Optimizer:
        """The optimizer for parameters (arrays or their shapes) over a run of `num_steps`.

        Raises:
          InputError: a parameter is of no known kind.
        """
        schedule = self.schedule.build(num_steps)
        mask = decay_mask(params, self.decayed)
        clip = optax.identity() if self.clip_norm is None else clip_by_global_norm(self.clip_norm)
        transform = optax.named_chain(
            ("clip", clip),
            ("adam", optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)),
            ("decay", optax.add_decayed_weights(self.weight_decay, mask)),
            # Optax counts finished updates; the schedule counts the one being made.
            ("learning_rate", optax.scale_by_learning_rate(lambda count: schedule(count + 1))),
        )
        return Optimizer(transform, schedule)


OptimizerChoice = AdamW


def decay_mask(params: Any, decayed: tuple[ParameterKind, ...]) -> Any:
    """Tree of booleans, true where weight decay applies.

    Raises:
      InputError: a leaf's name is none of `PARAMETER_KINDS`: it would silently go undecayed.
    """

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        del leaf
        name = path[-1].key
        if name not in PARAMETER_KINDS:
            raise InputError(
                f"no weight-decay rule covers parameter {'/'.join(k.key for k in path)}: "
                f"its last name must be one of {', '.join(PARAMETER_KINDS)}"
            )
        return name in decayed

    return jax.tree_util.tree_map_with_path(decays, params)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales by min(1, max_norm / (norm + 1e-6)), norm over all parameters in float32.

    The 1e-6 is torch's and so OLMo's; Optax's own clipping has none.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.global_norm(updates) + 1e-6))
        return jax.tree.map(lambda u: u * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
