"""Optimizers: typed objects that build an Optax chain with named parts.

The parts' names (`clip`, `adam`, `decay`, `learning_rate`) are the names under which a
checkpoint keeps their state. Every optimizer clips the gradient, finds a direction, adds decay and
multiplies by the learning rate: p -= lr * (direction + weight_decay * p).
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpretrain.config.durations import Steps, whole_steps
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Between, Epsilon, NonNegative, Positive
from jaxpretrain.config.schema import snake_case, value_text
from jaxpretrain.models import scaling
from jaxpretrain.models.contract import Params
from jaxpretrain.optim import directions, layers
from jaxpretrain.optim.layers import PARAMETER_KINDS as PARAMETER_KINDS
from jaxpretrain.optim.layers import name_of
from jaxpretrain.optim.schedules import Schedule, Triangular

Part = tuple[str, optax.GradientTransformation]

Decay = Annotated[float, Between(0, 1, "[)")]
"""The type of a field that holds the decay of a running mean, per update."""


@dataclass(frozen=True)
class RateScaling:
    """Linear scaling of learning rates with the batch size, up to a cap."""

    base_batch: Annotated[int, Positive] = 256
    """Examples of a batch that the schedule's rates are meant for; another batch multiplies them
    by train.batch_size / base_batch."""
    cap: Annotated[float, Positive] = 16.0
    """Highest multiple of the rates; beyond some batch size, scaling makes runs diverge."""

    def multiple(self, batch_size: int) -> float:
        """Returns the factor of the learning rates at a batch size."""
        return min(batch_size / self.base_batch, self.cap)


class Optimizer(NamedTuple):
    """An Optax transformation with its learning rate."""

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule
    """Learning rate as a function of the number of the update, counted from 1."""


@dataclass(frozen=True)
class Shared:
    """The fields of every optimizer, and the way from a direction to an update."""

    schedule: Schedule = Triangular()
    """Learning rate over the run."""
    weight_decay: Annotated[float, Between(0, 1000)] = 0.1
    """Decay per unit of learning rate."""
    decayed: tuple[layers.ParameterKind, ...] = ("kernel",)
    """Kinds of parameters that decay: kernel (matrices, an untied head among them), embedding,
    scale (of norms), bias. OLMo 1: kernel; its 0424 edition: all; OLMo 2 and 3: all but
    embedding."""
    clip_norm: Annotated[float, Positive] | None = 1.0
    """Global gradient norm above which gradients are scaled down; none: no clipping."""
    clip_warmup: Steps = 0
    """Updates in which clip_norm is clip_warmup_factor times as high: from the second on, since
    OLMo's trainer clips before it looks up the threshold of a step. OLMo-7B: 1000."""
    clip_warmup_factor: Annotated[float, Positive] = 1.0
    """Multiple of clip_norm in these updates. OLMo-7B: 10; 0424 and 0724: 5."""
    rate_scaling: RateScaling | None = None
    """Scaling of the schedule's rates with train.batch_size; none: they are taken as they are."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the first moment is kept between steps. A second moment always is float32: its
    small increments would be lost in bfloat16."""

    def build(
        self,
        num_steps: int,
        batch_size: int,
        params: Params,
        factors: scaling.FactorsOf | None = None,
    ) -> Optimizer:
        """Returns the optimizer of parameters or shapes; `factors` are those of their settings.

        Raises:
          InputError: a parameter is of unknown kind, or no rule for `factors` is known.
        """
        rate = self.learning_rate(num_steps, batch_size)
        clip = optax.identity()
        if self.clip_norm is not None:
            warmup = whole_steps(self.clip_warmup)
            clip = layers.clip_by_global_norm(self.clip_norm, warmup, self.clip_warmup_factor)
        transform = optax.named_chain(
            ("clip", clip),
            *self._scaled_parts(params, factors),
            # Optax counts finished updates, a schedule the one being made.
            ("learning_rate", optax.scale_by_learning_rate(lambda count: rate(count + 1))),
        )
        return Optimizer(transform, rate)

    def learning_rate(self, num_steps: int, batch_size: int) -> optax.Schedule:
        """Returns the learning rate of an update by its number, counted from 1."""
        rate, multiple = self.schedule.build(num_steps), self.rate_multiple(batch_size)
        return rate if multiple == 1.0 else lambda number: multiple * rate(number)

    def clipped_to(self, number: int, norm: float) -> float:
        """Returns the factor by which clipping scales the gradient of an update, counted from 1."""
        if self.clip_norm is None:
            return 1.0
        is_raised = 2 <= number <= whole_steps(self.clip_warmup) + 1
        limit = self.clip_norm * (self.clip_warmup_factor if is_raised else 1.0)
        return min(1.0, limit / (norm + layers.SMALL_NORM))

    def rate_multiple(self, batch_size: int) -> float:
        """Returns the factor of the schedule's rates that scaling gives; 1.0 without scaling."""
        return 1.0 if self.rate_scaling is None else self.rate_scaling.multiple(batch_size)

    def describe(self, batch_size: int) -> str:
        """Returns one line: the settings of the class, what decays, the clipping of gradients."""
        shared = {field.name for field in fields(Shared)}
        own = [f.name for f in fields(self) if f.name not in shared]
        settings = [f"{name} {value_text(getattr(self, name))}" for name in own]
        decayed = ", ".join(self.decayed) or "nothing"
        settings.append(f"weight decay {self.weight_decay:g} of {decayed}")
        settings.append(f"first moments in {self.moment_dtype}")
        if self.clip_norm is None:
            settings.append("no clipping")
        else:
            settings.append(f"gradient norms clipped to {self.clip_norm:g}")
            if warmup := whole_steps(self.clip_warmup):
                factor = self.clip_warmup_factor
                settings[-1] += f", {factor:g} times that in updates 2 to {warmup + 1:,}"
        if self.rate_scaling is not None:
            multiple, base = self.rate_multiple(batch_size), self.rate_scaling.base_batch
            capped = " (the cap)" if multiple == self.rate_scaling.cap else ""
            settings.append(f"learning rates times {multiple:g}{capped}, from batches of {base:,}")
        return f"{snake_case(type(self))}: {'; '.join(settings)}"

    def _parts(self, params: Params) -> list[Part]:
        """Returns the parts between clipping and the learning rate."""
        raise NotImplementedError

    def _scaled_parts(self, params: Params, factors: scaling.FactorsOf | None) -> list[Part]:
        """Returns the parts with the factors of epsilon and of the learning rate.

        Decay comes after the rate's factor and so has none: a factor of the rate is made up for by
        its inverse on the weight decay, as CompleteP has it.
        """
        parts = self._parts(params)
        if factors is None:
            return parts
        epsilon = ("epsilon", layers.multiply(lambda path: 1 / factors(name_of(path)).epsilon))
        rates = ("rates", layers.multiply(lambda path: self._rate(path, factors(name_of(path)))))
        place = [name for name, _ in parts].index("decay")
        return [epsilon, *parts[:place], rates, *parts[place:]]

    def _rate(self, path: layers.Path, factors: scaling.Factors) -> float:
        """Returns the factor of the learning rate of a parameter."""
        raise InputError(
            f"no rule is known for optim={snake_case(type(self))} with model.scaling; take adam_w, "
            "lion or muon, or model.scaling=standard"
        )

    def _decay(self, params: Params) -> Part:
        where = decay_mask(params, self.decayed)
        return "decay", optax.add_decayed_weights(self.weight_decay, where)


@dataclass(frozen=True)
class AdamW(Shared):
    """Adam with decoupled weight decay, as torch's AdamW: p -= lr * (adam + weight_decay * p)."""

    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decays of the first and of the second moment."""
    epsilon: Epsilon = 1e-8
    """Added to the root of the second moment (OLMo 1 and its 0424 and 0724 editions: 1e-5)."""
    bias_correction: Literal["by_step", "as_first"] = "by_step"
    """by_step: moments are corrected for their start at zero. as_first: every update is corrected
    as if it were the first, which makes late ones larger by sqrt(1 - 0.95) / (1 - 0.9) = 2.236.
    OLMo-core's SkipStepAdamW did so until June 2025: OLMo-2-32B was trained so."""

    def _parts(self, params: Params) -> list[Part]:
        adam = optax.scale_by_adam(*self.betas, self.epsilon, mu_dtype=self.moment_dtype)
        if self.bias_correction == "as_first":
            adam = _always_first(adam)
        return [("adam", adam), self._decay(params)]

    def _rate(self, path: layers.Path, factors: scaling.Factors) -> float:
        return factors.rate


@dataclass(frozen=True)
class Lion(Shared):
    """The sign of a momentum (arXiv 2302.06675), at 3 to 10 times less rate and more decay."""

    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Weight of the momentum in the sign (the gradient has the rest), and its decay."""

    def _parts(self, params: Params) -> list[Part]:
        lion = optax.scale_by_lion(*self.betas, mu_dtype=self.moment_dtype)
        return [("lion", lion), self._decay(params)]

    def _rate(self, path: layers.Path, factors: scaling.Factors) -> float:
        return factors.rate


@dataclass(frozen=True)
class Adafactor(Shared):
    """Adam's scaling with a second moment of rows and columns (arXiv 1804.04235), per layer."""

    beta1: Decay | None = None
    """Decay of a first moment of the scaled gradients; none: no first moment."""
    beta2: Annotated[float, Between(0, 1)] = 0.999
    """Highest decay of the second moment (arXiv 2106.04560); 1: as in the paper."""
    decay_power: Annotated[float, Between(0, 1)] = 0.8
    """The second moment decays by 1 - t^-decay_power at update t, up to beta2."""
    min_size: Annotated[int, NonNegative] = 128
    """Matrices with a shorter side keep a whole second moment."""
    clip_rms: Annotated[float, Positive] | None = 1.0
    """Root mean square to which each layer's direction is scaled down; none: no such clipping."""
    parameter_scale: Annotated[float, Positive] | None = None
    """Directions are multiplied by the root mean square of their layer's parameter, at least this.
    The paper: 1e-3, with learning rates near 1e-2. none: learning rates are near AdamW's."""

    def _parts(self, params: Params) -> list[Part]:
        moment = directions.scale_by_factored_moment(self.decay_power, self.beta2, self.min_size)
        parts = [("adafactor", moment)]
        if self.clip_rms is not None:
            parts.append(("clip_rms", directions.clip_by_layer_rms(self.clip_rms)))
        if self.parameter_scale is not None:
            parts.append(("parameter_scale", directions.scale_by_layer_rms(self.parameter_scale)))
        if self.beta1 is not None:
            dtype = jnp.dtype(self.moment_dtype)
            momentum = optax.ema(self.beta1, debias=False, accumulator_dtype=dtype)
            parts.append(("momentum", momentum))
        return [*parts, self._decay(params)]


@dataclass(frozen=True)
class Muon(Shared):
    """Orthogonalized momentum for the matrices of layers, AdamW for all else (arXiv 2502.16982)."""

    momentum: Decay = 0.95
    """Decay of the momentum of matrices (Nesterov's)."""
    num_iterations: Annotated[int, Between(1, 100)] = 5
    """Newton-Schulz iterations."""
    scale: directions.MuonScale = "adamw_rms"
    """adamw_rms: 0.2 sqrt(max(in, out)), so that AdamW's learning rates and decay carry over.
    spectral: sqrt(max(1, out / in)), with learning rates near 0.02."""
    adam_rate: Annotated[float, Between(0, 1000)] = 1.0
    """Learning rate of what AdamW updates, in multiples of the schedule's."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Adam's decays of the first and of the second moment."""
    epsilon: Epsilon = 1e-8
    """Adam's addition to the root of the second moment."""

    def _parts(self, params: Params) -> list[Part]:
        matrices = layers.mask(params, layers.is_layer_matrix)
        others = jax.tree.map(lambda is_matrix: not is_matrix, matrices)
        how = self.num_iterations, self.scale, self.moment_dtype
        muon = directions.scale_by_muon(self.momentum, *how)
        adam = optax.scale_by_adam(*self.betas, self.epsilon, mu_dtype=self.moment_dtype)
        return [
            ("muon", optax.masked(muon, matrices)),
            ("adam", optax.masked(adam, others)),
            self._decay(params),
            ("adam_rate", optax.masked(optax.scale(self.adam_rate), others)),
        ]

    def _rate(self, path: layers.Path, factors: scaling.Factors) -> float:
        if not layers.is_layer_matrix(path):
            return factors.rate
        return factors.muon_rate if self.scale == "adamw_rms" else 1.0


OptimizerChoice = AdamW | Lion | Adafactor | Muon


def decay_mask(params: Params, decayed: tuple[layers.ParameterKind, ...]) -> Params:
    """Returns a tree of booleans, true where weight decay applies; InputError for other kinds."""
    return layers.mask(params, lambda path: layers.kind_of(path) in decayed)


def _always_first(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns Adam with the corrections of the first update in every update; it still counts."""

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None):
        count = jnp.asarray(optax.safe_increment(state.count))
        first = state._replace(count=jnp.zeros_like(state.count))
        updates, state = adam.update(updates, first, params)
        return updates, state._replace(count=count)  # pyright: ignore[reportAttributeAccessIssue]

    return optax.GradientTransformation(adam.init, update)
