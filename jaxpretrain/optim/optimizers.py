"""Optimizers: typed objects that build an Optax chain with named parts.

The parts' names (`clip`, `adam`, `decay`, `learning_rate`) are the names under which a
checkpoint keeps their state. Every optimizer clips the gradient, finds a direction, adds decay and
multiplies by the learning rate: p -= lr * (direction + weight_decay * p).
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.optim.adafactor import (
    clip_by_layer_rms,
    scale_by_factored_moment,
    scale_by_layer_rms,
)
from jaxpretrain.optim.layers import PARAMETER_KINDS as PARAMETER_KINDS
from jaxpretrain.optim.layers import ParameterKind, is_layer_matrix, kind_of, mask
from jaxpretrain.optim.muon import MuonScale, scale_by_muon
from jaxpretrain.optim.schedules import Schedule, Triangular

Part = tuple[str, optax.GradientTransformation]


class Optimizer(NamedTuple):
    """An Optax transformation and the learning rate it follows, a function of the update number."""

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule


@dataclass(frozen=True)
class Shared:
    """What every optimizer has: the way from a direction to an update."""

    schedule: Schedule = Triangular()
    """Learning rate over the run."""
    weight_decay: float = 0.1
    """Decay per unit of learning rate."""
    decayed: tuple[ParameterKind, ...] = ("kernel",)
    """Kinds of parameters that decay: kernel (matrices, an untied head among them), embedding,
    scale (of norms), bias. OLMo 1: kernel; its 0424 edition: all; OLMo 2: kernel,scale."""
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; none: no clipping."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the first moment is kept between steps. A second moment always is float32: its
    small increments would be lost in bfloat16."""

    def build(self, num_steps: int, params: Any) -> Optimizer:
        """The optimizer for parameters (arrays or their shapes) over a run of `num_steps`.

        Raises:
          InputError: a parameter is of no known kind.
        """
        schedule = self.schedule.build(num_steps)
        clip = optax.identity() if self.clip_norm is None else clip_by_global_norm(self.clip_norm)
        transform = optax.named_chain(
            ("clip", clip),
            *self._parts(params),
            # Optax counts finished updates; the schedule counts the one being made.
            ("learning_rate", optax.scale_by_learning_rate(lambda count: schedule(count + 1))),
        )
        return Optimizer(transform, schedule)

    def _parts(self, params: Any) -> list[Part]:
        """What stands between clipping and the learning rate."""
        raise NotImplementedError

    def _decay(self, params: Any) -> Part:
        where = decay_mask(params, self.decayed)
        return "decay", optax.add_decayed_weights(self.weight_decay, where)


@dataclass(frozen=True)
class AdamW(Shared):
    """Adam with decoupled weight decay, as torch's AdamW: p -= lr * (adam + weight_decay * p)."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment (OLMo 1 and its 0424 and 0724 editions: 1e-5)."""

    def _parts(self, params: Any) -> list[Part]:
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon, mu_dtype=self.moment_dtype)
        return [("adam", adam), self._decay(params)]


@dataclass(frozen=True)
class Lion(Shared):
    """The sign of a momentum (arXiv 2302.06675).

    Wants a third to a tenth of AdamW's learning rate and a weight decay larger by as much.
    """

    beta1: float = 0.9
    """Weight of the momentum in the sign that is taken; the rest is the gradient's."""
    beta2: float = 0.99
    """Decay of the momentum."""

    def _parts(self, params: Any) -> list[Part]:
        lion = optax.scale_by_lion(self.beta1, self.beta2, mu_dtype=self.moment_dtype)
        return [("lion", lion), self._decay(params)]


@dataclass(frozen=True)
class Adafactor(Shared):
    """Adam's scaling with a second moment of rows and columns (arXiv 1804.04235), per layer."""

    beta1: float | None = None
    """Decay of a first moment, which is taken of scaled gradients; none: there is none."""
    beta2: float = 0.999
    """Highest decay of the second moment (arXiv 2106.04560); 1: as in the paper."""
    decay_power: float = 0.8
    """The second moment decays by 1 - t^-decay_power at update t, up to beta2."""
    min_size: int = 128
    """Matrices with a shorter side keep a whole second moment."""
    clip_rms: float | None = 1.0
    """Root mean square to which each layer's direction is scaled down; none: no such clipping."""
    parameter_scale: float | None = None
    """Directions are multiplied by the root mean square of their layer's parameter, at least this.
    The paper: 1e-3, with learning rates near 1e-2. none: learning rates are near AdamW's."""

    def _parts(self, params: Any) -> list[Part]:
        moment = scale_by_factored_moment(self.decay_power, self.beta2, self.min_size)
        parts = [("adafactor", moment)]
        if self.clip_rms is not None:
            parts.append(("clip_rms", clip_by_layer_rms(self.clip_rms)))
        if self.parameter_scale is not None:
            parts.append(("parameter_scale", scale_by_layer_rms(self.parameter_scale)))
        if self.beta1 is not None:
            momentum = optax.ema(
                self.beta1, debias=False, accumulator_dtype=jnp.dtype(self.moment_dtype)
            )
            parts.append(("momentum", momentum))
        return [*parts, self._decay(params)]


@dataclass(frozen=True)
class Muon(Shared):
    """Orthogonalized momentum for the matrices of layers, AdamW for all else (arXiv 2502.16982)."""

    momentum: float = 0.95
    """Decay of the momentum of matrices (Nesterov's)."""
    num_iterations: int = 5
    """Newton-Schulz iterations."""
    scale: MuonScale = "adamw_rms"
    """adamw_rms: 0.2 sqrt(max(in, out)), so that AdamW's learning rates and decay carry over.
    spectral: sqrt(max(1, out / in)), with learning rates near 0.02."""
    adam_rate: float = 1.0
    """Learning rate of what AdamW updates, in multiples of the schedule's."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.95
    """Adam's decay of the second moment."""
    epsilon: float = 1e-8
    """Adam's addition to the root of the second moment."""

    def _parts(self, params: Any) -> list[Part]:
        matrices = mask(params, is_layer_matrix)
        others = jax.tree.map(lambda is_matrix: not is_matrix, matrices)
        muon = scale_by_muon(self.momentum, self.num_iterations, self.scale, self.moment_dtype)
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon, mu_dtype=self.moment_dtype)
        return [
            ("muon", optax.masked(muon, matrices)),
            ("adam", optax.masked(adam, others)),
            self._decay(params),
            ("adam_rate", optax.masked(optax.scale(self.adam_rate), others)),
        ]


OptimizerChoice = AdamW | Lion | Adafactor | Muon


def decay_mask(params: Any, decayed: tuple[ParameterKind, ...]) -> Any:
    """Tree of booleans, true where weight decay applies.

    Raises:
      InputError: a leaf's name is none of `PARAMETER_KINDS`: it would silently go undecayed.
    """
    return mask(params, lambda path: kind_of(path) in decayed)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales by min(1, max_norm / (norm + 1e-6)), norm over all parameters in float32.

    The 1e-6 is torch's and so OLMo's; Optax's own clipping has none.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.global_norm(updates) + 1e-6))
        return jax.tree.map(lambda u: u * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
